module sesame_go

go 1.19

require sesame-qmp v0.0.0

replace sesame-qmp => ../../../clients/go
