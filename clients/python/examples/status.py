"""Prints what a machine does, and then what happens to it: status.py QMP-SOCKET."""

import sys

from sesame_qmp import Client

with Client.connect(sys.argv[1]) as qmp:
    stream = qmp.events()
    print(qmp.version.package, "is", qmp.query_status().status)
    for event in stream:
        print(event)
