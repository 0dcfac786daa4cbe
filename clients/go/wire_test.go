package qmp

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
)

func TestAUnionIsReadByItsDiscriminatorAndGoesThroughAnAlternate(t *testing.T) {
	wire := `{"driver":"raw","file":{"driver":"null-co","size":512},"offset":1}`
	var options BlockdevOptions
	if err := json.Unmarshal([]byte(wire), &options); err != nil {
		t.Fatal(err)
	}
	storage := BlockdevOptions{Variant: BlockdevOptionsNullCo{Size: Some(uint64(512))}}
	want := BlockdevOptionsRaw{File: BlockdevRef{Definition: &storage}, Offset: Some(uint64(1))}
	if !reflect.DeepEqual(options.Variant, want) {
		t.Fatalf("%+v", options.Variant)
	}
	text, err := json.Marshal(options)
	if err != nil || string(text) != wire {
		t.Fatalf("%s %v", text, err)
	}
}

func TestWhatANewerServerSaysIsKept(t *testing.T) {
	for _, wire := range []string{`{"driver":"tape","reels":2}`, `{}`} {
		var options BlockdevOptions
		if err := json.Unmarshal([]byte(wire), &options); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(options)
		if err != nil || string(text) != wire {
			t.Fatalf("%s %v", text, err)
		}
	}
	event := readEvent("NEW", json.RawMessage(`{"a":1}`))
	if _, ok := event.(UnknownEvent); !ok || event.EventName() != "NEW" {
		t.Fatalf("%+v", event)
	}
}

func TestAnErrorIsFoundByItsClass(t *testing.T) {
	var err error = &CommandError{"device_del", DeviceNotFound, "no"}
	if !errors.Is(err, &CommandError{Class: DeviceNotFound}) || errors.Is(err, &CommandError{Class: GenericError}) {
		t.Fatal(err)
	}
}
