// Sessions by Sesame's own Go client: sesame_go plain|guest SOCKET.
//
// Run by tests/tests/clients.rs and clients_guest.rs. Prints one line per thing seen; the last is
// "done".
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	qmp "sesame-qmp"
)

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func want(right bool, what ...any) {
	if !right {
		log.Fatal(what...)
	}
}

func refused(class qmp.ErrorClass, err error) {
	want(errors.Is(err, &qmp.CommandError{Class: class}), "wanted ", class, ": ", err)
	fmt.Println("refused:", err)
}

func disk() *os.File {
	file, err := os.CreateTemp("", "disk")
	must(err)
	must(os.Remove(file.Name()))
	must(file.Truncate(1 << 20))
	return file
}

func plain(ctx context.Context, conn *qmp.Conn) {
	version, err := conn.QueryVersion(ctx)
	must(err)
	want(version == conn.Version(), version)
	want(version.Package == "sesame-"+qmp.Version, version)
	schema, err := conn.QueryQmpSchema(ctx)
	must(err)
	found := false
	for _, one := range schema {
		command, ok := one.Variant.(qmp.SchemaInfoCommand)
		found = found || ok && command.Name == "add-fd"
	}
	want(found, "no add-fd in the schema")

	refused(qmp.CommandNotFound, conn.Execute(ctx, "no-such-command", nil, nil))
	refused(qmp.DeviceNotFound, conn.DeviceDel(ctx, qmp.DeviceDelArguments{ID: "d9"}))
	refused(qmp.GenericError, conn.Closefd(ctx, qmp.ClosefdArguments{Fdname: "nobody"}))

	file := disk()
	kind := qmp.FdKindFile
	must(conn.Getfd(ctx, file, qmp.GetfdArguments{Fdname: "disk", Kind: &kind}))
	added, err := conn.AddFD(ctx, file, qmp.AddFDArguments{Opaque: qmp.Some("from go")})
	must(err)
	sets, err := conn.QueryFdsets(ctx)
	must(err)
	want(sets[len(sets)-1].FdsetID == added.FdsetID, sets)
	storage := qmp.BlockdevOptions{Variant: qmp.BlockdevOptionsFile{Filename: "fd:disk"}}
	must(conn.BlockdevAdd(ctx, qmp.BlockdevOptionsRaw{
		NodeName: qmp.Some("disk"),
		File:     qmp.BlockdevRef{Definition: &storage},
	}))
	must(conn.BlockdevDel(ctx, qmp.BlockdevDelArguments{NodeName: "disk"}))
	fmt.Println("a disk went through as an fd")

	// Fds find their commands when many are sent at once.
	var all sync.WaitGroup
	for at := 0; at < 8; at++ {
		all.Add(1)
		go func(at int) {
			defer all.Done()
			name := fmt.Sprint("disk", at)
			must(conn.Getfd(ctx, disk(), qmp.GetfdArguments{Fdname: name}))
			options := qmp.BlockdevOptionsFile{Filename: "fd:" + name, NodeName: &name}
			must(conn.BlockdevAdd(ctx, options))
		}(at)
	}
	all.Wait()

	shutdown := conn.Events("SHUTDOWN")
	everything := conn.Events()
	must(conn.Quit(ctx))
	event, err := qmp.Wait[qmp.ShutdownEvent](ctx, shutdown)
	must(err)
	want(event.Reason == qmp.ShutdownCauseHostQmpQuit && !event.Guest, event)
	for err == nil {
		_, err = everything.Next(ctx)
	}
	want(errors.Is(err, qmp.ErrClosed), err)
	_, err = conn.QueryStatus(ctx)
	want(err != nil, "the server has gone")
}

// guest hands a disk, its standard input, to a machine that waits; lets it run, and sees it end.
func guest(ctx context.Context, conn *qmp.Conn) {
	must(conn.Getfd(ctx, os.Stdin, qmp.GetfdArguments{Fdname: "disk"}))
	options := qmp.BlockdevOptionsFile{Filename: "fd:disk", NodeName: qmp.Some("data")}
	must(conn.BlockdevAdd(ctx, options))
	must(conn.DeviceAdd(ctx, qmp.DeviceOptionsVirtioBlkPCI{
		Drive:  "data",
		Serial: qmp.Some("data"),
		Bus:    qmp.Some("port0"),
	}))
	stream := conn.Events("RESUME", "POWERDOWN", "SHUTDOWN")
	must(conn.Cont(ctx))
	_, err := qmp.Wait[qmp.ResumeEvent](ctx, stream)
	must(err)
	fmt.Println("running")
	_, err = qmp.Wait[qmp.PowerdownEvent](ctx, stream)
	must(err)
	shutdown, err := qmp.Wait[qmp.ShutdownEvent](ctx, stream)
	must(err)
	want(shutdown.Guest && shutdown.Reason == qmp.ShutdownCauseGuestShutdown, shutdown)
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	conn, err := qmp.Dial(ctx, os.Args[2])
	must(err)
	defer conn.Close()
	if os.Args[1] == "guest" {
		guest(ctx, conn)
	} else {
		plain(ctx, conn)
	}
	fmt.Println("done")
}
