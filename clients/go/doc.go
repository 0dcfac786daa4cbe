// Package qmp is a typed QMP client for Sesame that passes file descriptors.
//
// What commands, types and events there are is generated from the schema, so that the version is
// the server's; the rest knows the socket, the framing and the fds, and no command.
//
//	types.go, commands.go, events.go    generated
//	conn.go                             the session: who waits for what
//	stream.go                           events
//	wire.go                             unions and alternates, which encoding/json does not know
package qmp
