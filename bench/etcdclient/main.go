// Etcdclient puts a closed load on etcd through its own Go client over gRPC: N clients on connections of their own, each
// with one request in flight. Etcd's JSON gateway is its slow path, so this is the fair reference beside bench/loadgen,
// whose flags, keys, values and output it shares.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	keyBytes = 12
	stride   = 15485863 // as in bench/loadgen
)

// config is what the flags say.
type config struct {
	address    string
	op         string
	clients    int
	seconds    float64
	warmup     float64
	keys       int
	valueBytes int
	batch      int
	seed       uint64
}

// worker is one client and what it measured.
type worker struct {
	config
	client     *clientv3.Client
	random     uint64
	value      []byte
	samples    []time.Duration
	errors     int
	firstError error
}

func main() {
	var c config
	flag.StringVar(&c.address, "address", "", "host:port of the server")
	flag.StringVar(&c.op, "op", "put", "put or get")
	flag.IntVar(&c.clients, "clients", 1, "clients, each with a connection and one request in flight")
	flag.Float64Var(&c.seconds, "seconds", 5, "how long to measure")
	flag.Float64Var(&c.warmup, "warmup", 1, "seconds of load before measuring")
	flag.IntVar(&c.keys, "keys", 100000, "size of the key space")
	flag.IntVar(&c.valueBytes, "value-bytes", 200, "size of a value")
	flag.IntVar(&c.batch, "batch", 1, "puts of a transaction, which is one operation; 1: no transactions")
	flag.Uint64Var(&c.seed, "seed", 1, "of the sequence of keys")
	flag.Parse()
	if err := run(c); err != nil {
		fmt.Fprintln(os.Stderr, "etcdclient:", err)
		os.Exit(1)
	}
}

// run connects the clients, lets them work, and prints the figures.
func run(c config) error {
	if c.op != "put" && c.op != "get" {
		return fmt.Errorf("-op must be put or get, not %q", c.op)
	}
	if c.batch < 1 || (c.batch > 1 && (c.op != "put" || c.keys%stride == 0 || c.keys < c.batch)) {
		return fmt.Errorf("-batch must be positive, and goes with put")
	}
	workers := make([]*worker, c.clients)
	for i := range workers {
		client, err := clientv3.New(clientv3.Config{
			Endpoints: []string{c.address}, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		})
		if err != nil {
			return err
		}
		defer client.Close()
		workers[i] = &worker{
			config: c, client: client, value: newValue(c.valueBytes),
			random: c.seed*0x9E3779B97F4A7C15 + uint64(i+1)*0xBF58476D1CE4E5B9,
		}
	}
	measureAt := time.Now().Add(time.Duration(c.warmup * float64(time.Second)))
	end := measureAt.Add(time.Duration(c.seconds * float64(time.Second)))
	// Later than the end: a deadline that the server hears of would make it answer the last requests with errors.
	ctx, cancel := context.WithDeadline(context.Background(), end.Add(10*time.Second))
	defer cancel()
	var group sync.WaitGroup
	for _, w := range workers {
		group.Add(1)
		go func() {
			defer group.Done()
			w.work(ctx, measureAt, end)
		}()
	}
	time.Sleep(time.Until(measureAt))
	cpuAtStart := cpuTime()
	group.Wait()
	return report(workers, end.Sub(measureAt), cpuTime()-cpuAtStart)
}

// work asks, and asks again when answered, until the end; what is answered later does not count.
func (w *worker) work(ctx context.Context, measureAt, endAt time.Time) {
	for time.Now().Before(endAt) && w.errors < 1000 {
		number := splitmix(&w.random) % uint64(w.keys)
		begin := time.Now()
		err := w.do(ctx, number)
		end := time.Now()
		switch {
		case err != nil:
			w.errors++
			w.firstError = err
		case end.After(measureAt) && end.Before(endAt):
			w.samples = append(w.samples, end.Sub(begin))
		}
	}
}

// do is one operation, its answer checked.
func (w *worker) do(ctx context.Context, number uint64) error {
	if w.batch > 1 {
		return w.transact(ctx, number)
	}
	key := keyOf(number)
	if w.op == "put" {
		copy(w.value, key)
		_, err := w.client.Put(ctx, key, string(w.value))
		return err
	}
	answer, err := w.client.Get(ctx, key)
	if err != nil {
		return err
	}
	if len(answer.Kvs) != 1 || len(answer.Kvs[0].Value) != w.valueBytes || !bytes.HasPrefix(answer.Kvs[0].Value, []byte(key)) {
		return fmt.Errorf("not the value of %s", key)
	}
	return nil
}

// transact puts a batch of keys, all different.
func (w *worker) transact(ctx context.Context, number uint64) error {
	puts := make([]clientv3.Op, w.batch)
	for i := range puts {
		key := keyOf((number + uint64(i)) * stride % uint64(w.keys))
		copy(w.value, key)
		puts[i] = clientv3.OpPut(key, string(w.value))
	}
	answer, err := w.client.Txn(ctx).Then(puts...).Commit()
	if err == nil && !answer.Succeeded {
		err = fmt.Errorf("the transaction did not succeed")
	}
	return err
}

func keyOf(number uint64) string {
	return fmt.Sprintf("key-%08d", number)
}

// report merges what the workers measured and prints it as one JSON object.
func report(workers []*worker, elapsed, cpu time.Duration) error {
	var samples []time.Duration
	errors, firstError := 0, ""
	for _, w := range workers {
		samples = append(samples, w.samples...)
		errors += w.errors
		if firstError == "" && w.firstError != nil {
			firstError = w.firstError.Error()
		}
	}
	if len(samples) == 0 {
		return fmt.Errorf("nothing was answered; %d errors, %s", errors, firstError)
	}
	slices.Sort(samples)
	at := func(quantile float64) float64 {
		i := min(int(quantile*float64(len(samples))), len(samples)-1)
		return float64(samples[i]) / 1e6
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"ops": len(samples), "errors": errors, "first_error": firstError, "seconds": elapsed.Seconds(),
		"p50_ms": at(0.50), "p90_ms": at(0.90), "p99_ms": at(0.99), "p999_ms": at(0.999), "max_ms": at(1),
		"cpu_seconds": cpu.Seconds(),
	})
}

// newValue is a value whose first bytes make room for its key; the rest is as bench/loadgen makes it.
func newValue(size int) []byte {
	value := make([]byte, size)
	state := uint64(1)
	for i := keyBytes; i < size; i++ {
		value[i] = byte(' ' + splitmix(&state)%95)
	}
	return value
}

// cpuTime returns the processor time that this process has used.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// splitmix is a random sequence of which only the even spread matters.
func splitmix(state *uint64) uint64 {
	*state += 0x9E3779B97F4A7C15
	z := *state
	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
	z = (z ^ (z >> 27)) * 0x94D049BB133111EB
	return z ^ (z >> 31)
}
