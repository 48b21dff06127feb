// Goroutines, channels, timers and garbage; a digest that depends on every step.
//
// Usage: work GO. It does not end before GO is there.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

var steps int64

func told() bool {
	_, err := os.Stat(os.Args[1])
	return err == nil
}

func chain(seed byte, rounds int, out chan<- [32]byte) {
	h := sha256.Sum256([]byte{seed})
	var keep [][]byte
	for i := 0; i < rounds; i++ {
		if i == rounds*3/4 {
			for !told() {
				time.Sleep(2 * time.Millisecond)
			}
		}
		h = sha256.Sum256(h[:])
		keep = append(keep, append([]byte(nil), h[:]...))
		if len(keep) > 5000 {
			keep = nil
		}
		if i%2000 == 0 {
			time.Sleep(time.Millisecond)
		}
		atomic.AddInt64(&steps, 1)
	}
	out <- h
}

func main() {
	results := make([][32]byte, 8)
	var wait sync.WaitGroup
	for k := 0; k < 8; k++ {
		wait.Add(1)
		go func(k int) {
			defer wait.Done()
			out := make(chan [32]byte)
			go chain(byte(k), 200000, out)
			results[k] = <-out
		}(k)
	}
	for atomic.LoadInt64(&steps) < 100000 {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("READY")
	wait.Wait()
	all := sha256.New()
	for _, r := range results {
		all.Write(r[:])
	}
	fmt.Printf("RESULT %x\n", all.Sum(nil))
	fmt.Println("OK")
}
