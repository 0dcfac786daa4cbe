package qmp

import (
	"errors"
	"fmt"
)

// ErrClosed says that the session has ended.
var ErrClosed = errors.New("the QMP session has ended")

// ErrorClass is the kind of a failure, for programs.
type ErrorClass string

// The error classes of QMP. A newer server may have others.
const (
	// GenericError is any failure without a class of its own.
	GenericError ErrorClass = "GenericError"
	// CommandNotFound means: the command is unknown, or not allowed in this state of the session.
	CommandNotFound ErrorClass = "CommandNotFound"
	// DeviceNotActive means: the device exists but is not active.
	DeviceNotActive ErrorClass = "DeviceNotActive"
	// DeviceNotFound means: no device, node or object has that name.
	DeviceNotFound ErrorClass = "DeviceNotFound"
	// KVMMissingCap means: the host's KVM lacks something that the command needs.
	KVMMissingCap ErrorClass = "KVMMissingCap"
)

// CommandError says that the server refused a command, or failed at it. The session goes on.
type CommandError struct {
	// Command is its name on the wire.
	Command string
	// Class is the kind of failure.
	Class ErrorClass
	// Desc says what failed and why, for people.
	Desc string
}

func (e *CommandError) Error() string { return fmt.Sprintf("%s: %s", e.Command, e.Desc) }

// Is finds a failure by its class: errors.Is(err, &CommandError{Class: DeviceNotFound}).
func (e *CommandError) Is(target error) bool {
	other, ok := target.(*CommandError)
	return ok && (other.Class == "" || other.Class == e.Class)
}
