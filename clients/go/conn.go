package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Event is something that happened: one of the types of events.go, or UnknownEvent.
type Event interface {
	// EventName is its name on the wire.
	EventName() string
}

// UnknownEvent is an event of a newer server.
type UnknownEvent struct {
	Name string
	Data json.RawMessage
}

// EventName is its name on the wire.
func (e UnknownEvent) EventName() string { return e.Name }

// TimedEvent is an event and when it happened, by the server's clock.
type TimedEvent struct {
	Time  time.Time
	Event Event
}

// Conn is a QMP session. Any number of goroutines may run commands over it.
type Conn struct {
	socket  *net.UnixConn
	version VersionInfo

	sending sync.Mutex

	mutex   sync.Mutex
	lastID  uint64
	waiting map[uint64]chan reply
	streams map[*Stream]struct{}
	why     error
}

type reply struct {
	value json.RawMessage
	err   *wireError
}

type wireError struct {
	Class ErrorClass `json:"class"`
	Desc  string     `json:"desc"`
}

type message struct {
	Greeting *struct {
		Version      VersionInfo `json:"version"`
		Capabilities []string    `json:"capabilities"`
	} `json:"QMP"`
	ID        *uint64         `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *wireError      `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Dial connects to a monitor's unix socket and negotiates.
func Dial(ctx context.Context, path string) (*Conn, error) {
	var dialer net.Dialer
	socket, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return New(ctx, socket.(*net.UnixConn))
}

// New takes over a connected socket and negotiates.
func New(ctx context.Context, socket *net.UnixConn) (*Conn, error) {
	c := &Conn{
		socket:  socket,
		waiting: map[uint64]chan reply{},
		streams: map[*Stream]struct{}{},
	}
	greeted := make(chan []string, 1)
	go c.read(greeted)
	var offered []string
	var ok bool
	select {
	case offered, ok = <-greeted:
	case <-ctx.Done():
		c.Close()
		return nil, ctx.Err()
	}
	if !ok {
		c.Close()
		return nil, c.ended()
	}
	enable := map[string]any{"enable": offered}
	if err := c.Execute(ctx, "qmp_capabilities", enable, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Version is what the server called itself in its greeting.
func (c *Conn) Version() VersionInfo { return c.version }

// Close ends the session. What it handed over stays with the server.
func (c *Conn) Close() error {
	c.end(ErrClosed)
	return c.socket.Close()
}

// Execute runs any command: arguments are what encoding/json makes of them, the reply goes into
// result, if that is not nil. The fds go along, and stay the caller's: the server has copies.
//
// Where ctx ends the wait, the command runs all the same, and its reply is passed over.
func (c *Conn) Execute(ctx context.Context, command string, arguments, result any, fds ...*os.File) error {
	id, answer, err := c.expect()
	if err != nil {
		return err
	}
	defer c.forget(id)
	request := map[string]any{"execute": command, "id": id}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("the arguments of %s: %w", command, err)
	}
	if err := c.send(append(line, '\n'), fds); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case reply, ok := <-answer:
		switch {
		case !ok:
			return c.ended()
		case reply.err != nil:
			return &CommandError{command, reply.err.Class, reply.err.Desc}
		case result == nil:
			return nil
		}
		if err := json.Unmarshal(reply.value, result); err != nil {
			return fmt.Errorf("the reply to %s: %w", command, err)
		}
		return nil
	}
}

func (c *Conn) expect() (uint64, chan reply, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.why != nil {
		return 0, nil, c.why
	}
	c.lastID++
	answer := make(chan reply, 1)
	c.waiting[c.lastID] = answer
	return c.lastID, answer, nil
}

func (c *Conn) forget(id uint64) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	delete(c.waiting, id)
}

func (c *Conn) send(line []byte, fds []*os.File) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if len(fds) > 0 {
		err := withNumbers(fds, nil, func(numbers []int) error {
			sent, _, err := c.socket.WriteMsgUnix(line, syscall.UnixRights(numbers...), nil)
			line = line[sent:]
			return err
		})
		if err != nil {
			return err
		}
	}
	if len(line) == 0 {
		return nil
	}
	_, err := c.socket.Write(line)
	return err
}

// withNumbers uses the numbers of files while none of them can be closed. File.Fd would do for
// one, but makes what is behind it block.
func withNumbers(files []*os.File, numbers []int, use func([]int) error) error {
	if len(files) == 0 {
		return use(numbers)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Control(func(number uintptr) {
		result = withNumbers(files[1:], append(numbers, int(number)), use)
	})
	if err != nil {
		return err
	}
	return result
}

func (c *Conn) read(greeted chan<- []string) {
	defer close(greeted)
	decoder := json.NewDecoder(bufio.NewReader(c.socket))
	for {
		var m message
		if err := decoder.Decode(&m); err != nil {
			c.end(fmt.Errorf("%w: %v", ErrClosed, err))
			c.socket.Close()
			return
		}
		switch {
		case m.Greeting != nil:
			c.version = m.Greeting.Version
			select {
			case greeted <- m.Greeting.Capabilities:
			default:
			}
		case m.Event != "":
			c.tell(m)
		case m.ID != nil:
			c.mutex.Lock()
			if answer, ok := c.waiting[*m.ID]; ok {
				delete(c.waiting, *m.ID)
				answer <- reply{m.Return, m.Error}
			}
			c.mutex.Unlock()
		}
	}
}

func (c *Conn) tell(m message) {
	event := readEvent(m.Event, m.Data)
	timed := TimedEvent{time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000), event}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for stream := range c.streams {
		stream.offer(timed)
	}
}

func (c *Conn) end(why error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.why != nil {
		return
	}
	c.why = why
	for _, answer := range c.waiting {
		close(answer)
	}
	c.waiting = map[uint64]chan reply{}
	for stream := range c.streams {
		stream.finish()
	}
}

func (c *Conn) ended() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.why
}
