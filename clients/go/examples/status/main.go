// Prints what a machine does, and then what happens to it: status QMP-SOCKET.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	qmp "sesame-qmp"
)

func main() {
	ctx := context.Background()
	conn, err := qmp.Dial(ctx, os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	stream := conn.Events()
	status, err := conn.QueryStatus(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(conn.Version().Package, "is", status.Status)
	for {
		timed, err := stream.Next(ctx)
		if err != nil {
			return
		}
		fmt.Printf("%s %+v\n", timed.Event.EventName(), timed.Event)
	}
}
