//go:build linux

// Loadgen puts a closed load on one key-value server over plain HTTP/1.1: N connections, each with one request in flight.
//
// One thread and one epoll: two system calls and a few microseconds an operation, so that on a small machine the
// generator takes as little as it can from the servers that it measures. It speaks to Kvorum (PUT and GET
// /v1/kv/{key}) and to etcd's JSON gateway (POST /v3/kv/put and /v3/kv/range) and checks every answer: the status, and
// for a get that the value begins with its key. It writes one JSON object to standard output.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"syscall"
	"time"
)

// errorsMax ends a run that measures nothing but failures.
const errorsMax = 1000

// config is what the flags say.
type config struct {
	address    string
	api        string
	op         string
	clients    int
	seconds    float64
	warmup     float64
	keys       int
	valueBytes int
	batch      int
	seed       uint64
}

// result is what is printed.
type result struct {
	Ops        int     `json:"ops"`
	Errors     int     `json:"errors"`
	FirstError string  `json:"first_error,omitempty"`
	Seconds    float64 `json:"seconds"`
	P50Ms      float64 `json:"p50_ms"`
	P90Ms      float64 `json:"p90_ms"`
	P99Ms      float64 `json:"p99_ms"`
	P999Ms     float64 `json:"p999_ms"`
	MaxMs      float64 `json:"max_ms"`
	CPUSeconds float64 `json:"cpu_seconds"`
}

func main() {
	var c config
	flag.StringVar(&c.address, "address", "", "host:port of the server")
	flag.StringVar(&c.api, "api", "kvorum", "kvorum or etcd")
	flag.StringVar(&c.op, "op", "put", "put, get, or fill (every key once, no time limit)")
	flag.IntVar(&c.clients, "clients", 1, "connections, each with one request in flight")
	flag.Float64Var(&c.seconds, "seconds", 5, "how long to measure")
	flag.Float64Var(&c.warmup, "warmup", 1, "seconds of load before measuring")
	flag.IntVar(&c.keys, "keys", 100000, "size of the key space")
	flag.IntVar(&c.valueBytes, "value-bytes", 200, "size of a value")
	flag.IntVar(&c.batch, "batch", 1, "puts of a transaction, which is one operation; 1: no transactions")
	flag.Uint64Var(&c.seed, "seed", 1, "of the sequence of keys")
	flag.Parse()
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // the samples are all that is allocated, and the raw system calls below do not let it run
	out, err := run(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		os.Exit(1)
	}
}

// run opens the connections and puts the load on them until the time, or the key space, is over.
func run(c config) (*result, error) {
	requests, err := newRequests(c)
	if err != nil {
		return nil, err
	}
	address, err := net.ResolveTCPAddr("tcp4", c.address)
	if err != nil {
		return nil, err
	}
	epoll, err := syscall.EpollCreate1(0)
	if err != nil {
		return nil, err
	}
	l := &load{config: c, requests: requests, address: address, epoll: epoll, samples: make([]uint32, 0, 1<<21)}
	l.connections = make(map[int32]*connection, c.clients)
	for i := 0; i < c.clients; i++ {
		if _, err := l.connect(); err != nil {
			return nil, err
		}
	}
	return l.run()
}

// load is a run in progress.
type load struct {
	config
	requests    *requests
	address     *net.TCPAddr
	epoll       int
	connections map[int32]*connection
	samples     []uint32 // units of 100 ns
	errors      int
	firstError  string
	measuring   bool
	started     time.Time
	filled      int // answered, when filling
	made        int // connections, ever
}

// run is the loop: wait for answers, and ask again.
func (l *load) run() (*result, error) {
	begin := time.Now()
	measureAt := begin.Add(time.Duration(l.warmup * float64(time.Second)))
	if l.op == "fill" {
		measureAt = begin
	}
	for _, c := range l.connections {
		if err := l.ask(c); err != nil {
			return nil, err
		}
	}
	var cpuAtStart time.Duration
	events := make([]syscall.EpollEvent, 512)
	lastAnswer := begin
	for {
		n, err := wait(l.epoll, events)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		if !l.measuring && !now.Before(measureAt) {
			l.measuring, l.started, cpuAtStart = true, now, cpuTime()
		}
		if l.measuring && l.op != "fill" && now.Sub(l.started).Seconds() >= l.seconds {
			break
		}
		for i := 0; i < n; i++ {
			if err := l.onReadable(l.connections[events[i].Fd]); err != nil {
				return nil, err
			}
		}
		if n > 0 {
			lastAnswer = now
		} else if now.Sub(lastAnswer) > 15*time.Second {
			return nil, fmt.Errorf("no answer for 15 seconds")
		}
		if l.op == "fill" && l.filled >= l.keys {
			break
		}
		if l.errors > errorsMax {
			return nil, fmt.Errorf("%d errors, the first: %s", l.errors, l.firstError)
		}
	}
	return l.summary(time.Since(l.started), cpuTime()-cpuAtStart), nil
}

// onReadable takes what has arrived; when it ends an answer, counts it and asks again.
func (l *load) onReadable(c *connection) error {
	done, err := c.receive()
	if err != nil {
		return l.replace(c, err.Error())
	}
	if !done {
		return nil
	}
	now := time.Now()
	if message := l.requests.check(c); message != "" {
		l.count(message)
	} else if l.measuring {
		l.samples = append(l.samples, uint32(min(int64(now.Sub(c.askedAt)/100), 1<<32-1)))
	}
	if c.closing {
		return l.replace(c, "")
	}
	if l.op == "fill" {
		l.filled += l.batch
	}
	return l.ask(c)
}

func (l *load) count(message string) {
	l.errors++
	if l.firstError == "" {
		l.firstError = message
	}
}

// ask writes the next request of this connection; in a fill that has asked for every key, nothing.
func (l *load) ask(c *connection) error {
	request, more := l.requests.next(c)
	if !more {
		return nil
	}
	c.reset()
	c.askedAt = time.Now()
	n, err := transfer(syscall.SYS_WRITE, c.fd, request)
	if err != 0 || n != len(request) {
		return l.replace(c, fmt.Sprintf("write: %d of %d bytes: %v", n, len(request), err))
	}
	return nil
}

// replace closes a connection that failed (with a message) or that the server closed, and opens another.
func (l *load) replace(c *connection, message string) error {
	if message != "" {
		l.count(message)
	}
	if l.op == "fill" && (message != "" || l.errors > 0) {
		return fmt.Errorf("filling: %s", l.firstError)
	}
	if l.op == "fill" {
		l.filled += l.batch
	}
	delete(l.connections, int32(c.fd))
	_ = syscall.Close(c.fd)
	if l.errors > errorsMax {
		return fmt.Errorf("%d errors, the first: %s", l.errors, l.firstError)
	}
	fresh, err := l.connect()
	if err != nil {
		return fmt.Errorf("%s; reconnect: %w", message, err)
	}
	return l.ask(fresh)
}

// summary turns the samples into figures.
func (l *load) summary(elapsed, cpu time.Duration) *result {
	sort.Slice(l.samples, func(i, j int) bool { return l.samples[i] < l.samples[j] })
	at := func(quantile float64) float64 {
		if len(l.samples) == 0 {
			return 0
		}
		i := min(int(quantile*float64(len(l.samples))), len(l.samples)-1)
		return float64(l.samples[i]) / 1e4
	}
	return &result{
		Ops: len(l.samples), Errors: l.errors, FirstError: l.firstError, Seconds: elapsed.Seconds(),
		P50Ms: at(0.50), P90Ms: at(0.90), P99Ms: at(0.99), P999Ms: at(0.999), MaxMs: at(1),
		CPUSeconds: cpu.Seconds(),
	}
}

// cpuTime returns the processor time that this process has used.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
