module sesame-qmp

go 1.19
