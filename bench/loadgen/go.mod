module kvorum.test/bench/loadgen

go 1.21
