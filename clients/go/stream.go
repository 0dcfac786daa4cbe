package qmp

import (
	"context"
	"sync"
)

// Stream is the events of some names, from when it was made on.
type Stream struct {
	conn  *Conn
	names map[string]bool

	mutex  sync.Mutex
	events []TimedEvent
	news   chan struct{}
	ended  bool
}

// Events begins a stream of the events of these names, or of all if there are none.
func (c *Conn) Events(names ...string) *Stream {
	s := &Stream{conn: c, names: map[string]bool{}, news: make(chan struct{}, 1)}
	for _, name := range names {
		s.names[name] = true
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.why != nil {
		s.finish()
		return s
	}
	c.streams[s] = struct{}{}
	return s
}

// Close ends the stream; events that nobody took are gone.
func (s *Stream) Close() {
	s.conn.mutex.Lock()
	defer s.conn.mutex.Unlock()
	delete(s.conn.streams, s)
	s.finish()
}

// Next waits for the next event. At the end of the session the error is ErrClosed.
func (s *Stream) Next(ctx context.Context) (TimedEvent, error) {
	for {
		s.mutex.Lock()
		if len(s.events) > 0 {
			event := s.events[0]
			s.events = s.events[1:]
			s.mutex.Unlock()
			return event, nil
		}
		ended := s.ended
		s.mutex.Unlock()
		if ended {
			return TimedEvent{}, ErrClosed
		}
		select {
		case <-s.news:
		case <-ctx.Done():
			return TimedEvent{}, ctx.Err()
		}
	}
}

// Wait passes over the events of a stream until one is an E.
func Wait[E Event](ctx context.Context, s *Stream) (E, error) {
	for {
		timed, err := s.Next(ctx)
		if err != nil {
			var none E
			return none, err
		}
		if event, ok := timed.Event.(E); ok {
			return event, nil
		}
	}
}

func (s *Stream) offer(event TimedEvent) {
	if len(s.names) > 0 && !s.names[event.Event.EventName()] {
		return
	}
	s.mutex.Lock()
	s.events = append(s.events, event)
	s.mutex.Unlock()
	s.wake()
}

func (s *Stream) finish() {
	s.mutex.Lock()
	s.ended = true
	s.mutex.Unlock()
	s.wake()
}

func (s *Stream) wake() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}
