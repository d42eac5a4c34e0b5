//go:build linux

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
)

const (
	keyBytes = 12       // key-00000000: 16 characters of base64, without padding
	stride   = 15485863 // a prime: the keys of a transaction are this far apart, so that they differ and are in no order
)

// requests builds what is asked, and judges what is answered.
type requests struct {
	config
	head   []byte // up to the key
	middle []byte // from the key to the value
	tail   []byte // after the value
	filler []byte // the value's bytes after its key, in the form in which they are sent
	first  []byte // before the first put of a transaction
	last   []byte // after its last one
	asked  int    // keys asked for, when filling
}

// newRequests prepares the parts of a request that do not change.
func newRequests(c config) (*requests, error) {
	if c.valueBytes < keyBytes || (c.valueBytes-keyBytes)%2 != 0 {
		return nil, fmt.Errorf("-value-bytes must be %d or more, and even", keyBytes)
	}
	if c.clients < 1 || c.keys < 1 || c.keys > 100000000 {
		return nil, fmt.Errorf("-clients and -keys must be positive, -keys at most 100000000")
	}
	if c.batch < 1 || (c.batch > 1 && (c.keys%c.batch != 0 || c.keys%stride == 0)) {
		return nil, fmt.Errorf("-batch must be positive, and divide -keys")
	}
	r := &requests{config: c}
	filler := make([]byte, c.valueBytes-keyBytes)
	state := uint64(1) // not the seed: every run knows the values of every other
	for i := range filler {
		filler[i] = byte(' ' + splitmix(&state)%95)
	}
	put := c.op == "put" || c.op == "fill"
	if !put && c.op != "get" {
		return nil, fmt.Errorf("-op must be put, get or fill, not %q", c.op)
	}
	if c.batch > 1 {
		if !put {
			return nil, fmt.Errorf("-batch goes with put and fill")
		}
		return r, r.prepareTxn(filler)
	}
	switch c.api {
	case "kvorum":
		r.filler = filler
		if put {
			r.head = []byte("PUT /v1/kv/")
			r.middle = []byte(fmt.Sprintf(" HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", c.address, c.valueBytes))
		} else {
			r.head = []byte("GET /v1/kv/")
			r.middle = []byte(fmt.Sprintf(" HTTP/1.1\r\nHost: %s\r\n\r\n", c.address))
		}
	case "etcd":
		r.filler = []byte(base64.StdEncoding.EncodeToString(filler))
		path, size := "/v3/kv/range", len(`{"key":""}`)+16
		r.middle, r.tail = []byte(`"}`), nil
		if put {
			path, size = "/v3/kv/put", len(`{"key":"","value":""}`)+16+16+len(r.filler)
			r.middle, r.tail = []byte(`","value":"`), []byte(`"}`)
		}
		head := "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{\"key\":\""
		r.head = []byte(fmt.Sprintf(head, path, c.address, size))
	default:
		return nil, fmt.Errorf("-api must be kvorum or etcd, not %q", c.api)
	}
	return r, nil
}

// prepareTxn prepares the parts of a transaction of -batch puts.
func (r *requests) prepareTxn(filler []byte) error {
	path, first := "/v1/txn", `{"then":[`
	keySent := keyBytes
	switch r.api {
	case "kvorum":
		var text bytes.Buffer
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(string(filler)); err != nil {
			return err
		}
		quoted := bytes.TrimSpace(text.Bytes())
		r.filler = quoted[1 : len(quoted)-1]
		r.head = []byte(`{"put":{"key":"`)
	case "etcd":
		path, first, keySent = "/v3/kv/txn", `{"success":[`, 16
		r.filler = []byte(base64.StdEncoding.EncodeToString(filler))
		r.head = []byte(`{"requestPut":{"key":"`)
	default:
		return fmt.Errorf("-api must be kvorum or etcd, not %q", r.api)
	}
	r.middle, r.tail, r.last = []byte(`","value":"`), []byte(`"}}`), []byte(`]}`)
	each := len(r.head) + len(r.middle) + len(r.filler) + len(r.tail) + 2*keySent + 1
	size := len(first) + r.batch*each - 1 + len(r.last)
	head := "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
	r.first = []byte(fmt.Sprintf(head, path, r.address, size, first))
	return nil
}

// next writes the connection's next request into its buffer; false when a fill has asked for every key.
func (r *requests) next(c *connection) ([]byte, bool) {
	number := splitmix(&c.random) % uint64(r.keys)
	if r.op == "fill" {
		if r.asked == r.keys {
			return nil, false
		}
		number = uint64(r.asked)
		r.asked += r.batch
	}
	c.request = c.request[:0]
	if r.batch == 1 {
		r.add(c, number)
		return c.request, true
	}
	c.request = append(c.request, r.first...)
	for i := 0; i < r.batch; i++ {
		if i > 0 {
			c.request = append(c.request, ',')
		}
		r.add(c, (number+uint64(i))*stride%uint64(r.keys))
	}
	c.request = append(c.request, r.last...)
	return c.request, true
}

// add appends the request for one key, or its part of a transaction.
func (r *requests) add(c *connection, number uint64) {
	var key [keyBytes]byte
	copy(key[:], "key-")
	for i := keyBytes - 1; i >= 4; i-- {
		key[i] = byte('0' + number%10)
		number /= 10
	}
	sent := key[:]
	var encoded [16]byte
	if r.api == "etcd" {
		base64.StdEncoding.Encode(encoded[:], key[:])
		sent = encoded[:]
	}
	c.key = append(c.key[:0], sent...)
	c.request = append(append(append(c.request, r.head...), sent...), r.middle...)
	if r.op != "get" {
		c.request = append(append(append(c.request, sent...), r.filler...), r.tail...)
	}
}

// check says what is wrong with an answer; nothing when it is what was asked for.
func (r *requests) check(c *connection) string {
	if c.status != 200 {
		return fmt.Sprintf("status %d: %.200q", c.status, c.body)
	}
	if r.batch > 1 && !bytes.Contains(c.body, []byte(`"succeeded":true`)) {
		return fmt.Sprintf("the transaction did not succeed: %.200q", c.body)
	}
	if r.op != "get" {
		return ""
	}
	value := c.body
	if r.api == "etcd" {
		_, after, found := bytes.Cut(c.body, []byte(`"value":"`))
		if !found {
			return fmt.Sprintf("no value: %.200q", c.body)
		}
		value = after[:max(0, bytes.IndexByte(after, '"'))]
	}
	if len(value) != len(c.key)+len(r.filler) || !bytes.HasPrefix(value, c.key) || !bytes.HasSuffix(value, r.filler[len(r.filler)-8:]) {
		return fmt.Sprintf("not the value of %s: %.200q", c.key, c.body)
	}
	return ""
}

// splitmix is a random sequence of which only the even spread matters.
func splitmix(state *uint64) uint64 {
	*state += 0x9E3779B97F4A7C15
	z := *state
	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
	z = (z ^ (z >> 27)) * 0x94D049BB133111EB
	return z ^ (z >> 31)
}
