//go:build linux

package main

import (
	"bytes"
	"fmt"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// connection is one keep-alive HTTP/1.1 connection with at most one request in flight.
type connection struct {
	fd       int
	random   uint64
	request  []byte
	key      []byte // of the request in flight, as it is sent
	buffer   []byte
	length   int // bytes in buffer
	headEnd  int // offset of the body, 0 while the head has not ended
	bodySize int // -1: chunked
	status   int
	body     []byte // when the answer has ended
	closing  bool
	askedAt  time.Time
}

// connect opens a connection and hands it to epoll.
func (l *load) connect() (*connection, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	to := &syscall.SockaddrInet4{Port: l.address.Port}
	copy(to.Addr[:], l.address.IP.To4())
	if err := syscall.Connect(fd, to); err != nil {
		return nil, err
	}
	if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1); err != nil {
		return nil, err
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)}
	if err := syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_ADD, fd, &event); err != nil {
		return nil, err
	}
	l.made++
	c := &connection{
		fd: fd, buffer: make([]byte, 16384),
		random: l.seed*0x9E3779B97F4A7C15 + uint64(l.made)*0xBF58476D1CE4E5B9,
	}
	l.connections[int32(fd)] = c
	return c, nil
}

func (c *connection) reset() {
	c.length, c.headEnd, c.bodySize, c.status, c.body, c.closing = 0, 0, 0, 0, nil, false
}

// receive reads once and says whether the answer has ended.
func (c *connection) receive() (bool, error) {
	if c.length == len(c.buffer) {
		return false, fmt.Errorf("an answer of more than %d bytes", len(c.buffer))
	}
	n, err := transfer(syscall.SYS_READ, c.fd, c.buffer[c.length:])
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return false, nil
	}
	if err != 0 {
		return false, err
	}
	if n == 0 {
		return false, fmt.Errorf("the server closed the connection")
	}
	c.length += n
	if c.headEnd == 0 {
		if err := c.parseHead(); err != nil || c.headEnd == 0 {
			return false, err
		}
	}
	if c.bodySize < 0 {
		return c.parseChunks()
	}
	if c.length < c.headEnd+c.bodySize {
		return false, nil
	}
	c.body = c.buffer[c.headEnd : c.headEnd+c.bodySize]
	return true, nil
}

// parseHead reads the status line and the three headers that matter, if the head has ended.
func (c *connection) parseHead() error {
	end := bytes.Index(c.buffer[:c.length], []byte("\r\n\r\n"))
	if end < 0 {
		return nil
	}
	head := c.buffer[:end]
	if len(head) < 12 || !bytes.HasPrefix(head, []byte("HTTP/1.1 ")) {
		return fmt.Errorf("not an HTTP/1.1 answer: %.40q", head)
	}
	status, err := strconv.Atoi(string(head[9:12]))
	if err != nil {
		return fmt.Errorf("not an HTTP status: %.40q", head)
	}
	c.status, c.headEnd = status, end+4
	for {
		next := bytes.IndexByte(head, '\n')
		if next < 0 {
			return nil
		}
		head = head[next+1:]
		name, value, _ := bytes.Cut(line(head), []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if c.bodySize, err = strconv.Atoi(string(value)); err != nil {
				return err
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			c.bodySize = -1
		case bytes.EqualFold(name, []byte("Connection")):
			c.closing = bytes.EqualFold(value, []byte("close"))
		}
	}
}

func line(text []byte) []byte {
	if end := bytes.IndexByte(text, '\r'); end >= 0 {
		return text[:end]
	}
	return text
}

// parseChunks joins the chunks when the last one has come.
func (c *connection) parseChunks() (bool, error) {
	rest := c.buffer[c.headEnd:c.length]
	var body []byte
	for {
		end := bytes.Index(rest, []byte("\r\n"))
		if end < 0 {
			return false, nil
		}
		size, err := strconv.ParseUint(string(rest[:end]), 16, 31)
		if err != nil {
			return false, fmt.Errorf("not a chunk: %.20q", rest)
		}
		if len(rest) < end+2+int(size)+2 {
			return false, nil
		}
		if size == 0 {
			c.body = body
			return true, nil
		}
		body = append(body, rest[end+2:end+2+int(size)]...)
		rest = rest[end+2+int(size)+2:]
	}
}

// wait returns how many connections are ready, after 100 ms at the latest. Raw system calls, here and in transfer: Go's own
// wrappers tell its scheduler, which then wakes other threads; one thread has no use for that, and the servers need the
// processor.
func wait(epoll int, events []syscall.EpollEvent) (int, error) {
	first := unsafe.Pointer(&events[0])
	n, _, err := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(first), uintptr(len(events)), 100, 0, 0)
	if err == syscall.EINTR {
		return 0, nil
	}
	if err != 0 {
		return 0, err
	}
	return int(n), nil
}

// transfer is read or write on a socket that does not block.
func transfer(call uintptr, fd int, data []byte) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)))
	return int(n), err
}
