package qmp

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Some is a pointer to a value, for members that may be absent.
func Some[T any](value T) *T { return &value }

// UnknownVariant is a branch of a union that a newer server has.
type UnknownVariant struct {
	// Raw is all of it.
	Raw json.RawMessage
}

// MarshalJSON gives it as it came.
func (u UnknownVariant) MarshalJSON() ([]byte, error) { return u.Raw, nil }

// tagged writes an object with members before its own: names and values in turns.
func tagged(object any, tags ...string) ([]byte, error) {
	rest, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteByte('{')
	for at := 0; at+1 < len(tags); at += 2 {
		for part, after := range []byte{':', ','} {
			text, err := json.Marshal(tags[at+part])
			if err != nil {
				return nil, err
			}
			out.Write(text)
			out.WriteByte(after)
		}
	}
	if bytes.Equal(rest, []byte("{}")) {
		out.Truncate(out.Len() - 1)
	}
	out.Write(rest[1:])
	return out.Bytes(), nil
}

// tagsOf reads an object's discriminators, with a slash between them.
func tagsOf(data []byte, tags ...string) (string, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		return "", err
	}
	values := make([]string, len(tags))
	for at, tag := range tags {
		if raw, ok := members[tag]; ok {
			if err := json.Unmarshal(raw, &values[at]); err != nil {
				return "", err
			}
		}
	}
	return strings.Join(values, "/"), nil
}

// variant reads one branch of a union.
func variant[V any, U any](data []byte, into *U) error {
	var value V
	if err := json.Unmarshal(data, &value); err != nil {
		return err
	}
	*into = any(value).(U)
	return nil
}

// jsonKind tells what a JSON value is: one of { [ " b n 0.
func jsonKind(data []byte) byte {
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return 'n'
	}
	switch first := data[0]; first {
	case '{', '[', '"', 'n':
		return first
	case 't', 'f':
		return 'b'
	default:
		return '0'
	}
}

// branch reads one type of an alternate.
func branch[T any](data []byte, into **T) error {
	*into = new(T)
	return json.Unmarshal(data, *into)
}
