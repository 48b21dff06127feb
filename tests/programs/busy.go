// Goroutines that compute, sleep, wake each other and allocate until GO appears; then everything is verified.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Whoever watches needs a processor as well: now and then a goroutine sleeps.
func breathe(round int64) {
	if round == 1 {
		time.Sleep(500 * time.Microsecond)
	}
}

func fail(format string, a ...interface{}) {
	fmt.Printf("FAIL: "+format+"\n", a...)
	os.Exit(1)
}

func main() {
	goPath := os.Args[1]
	var finish int32
	var wait sync.WaitGroup
	var rounds [6]int64
	for k := 0; k < 2; k++ {
		wait.Add(1)
		go func(k int) {
			defer wait.Done()
			h := sha256.Sum256([]byte{byte(k)})
			for atomic.LoadInt32(&finish) == 0 {
				again := h
				for i := 0; i < 500; i++ {
					h = sha256.Sum256(h[:])
				}
				for i := 0; i < 500; i++ {
					again = sha256.Sum256(again[:])
				}
				if h != again {
					fail("a computation went wrong")
				}
				atomic.AddInt64(&rounds[k], 1)
				breathe(1)
			}
		}(k)
	}
	ping, pong := make(chan int), make(chan int)
	wait.Add(3)
	go func() {
		defer wait.Done()
		for i := 0; atomic.LoadInt32(&finish) == 0; i++ {
			ping <- i
			if j := <-pong; j != i*2 {
				fail("answer %d to %d", j, i)
			}
			breathe(atomic.AddInt64(&rounds[2], 1) % 50)
		}
		close(ping)
	}()
	go func() {
		defer wait.Done()
		for i := range ping {
			pong <- i * 2
		}
	}()
	go func() {
		defer wait.Done()
		for atomic.LoadInt32(&finish) == 0 {
			start := time.Now()
			time.Sleep(3 * time.Millisecond)
			if d := time.Since(start); d < 3*time.Millisecond {
				fail("slept %v", d)
			}
			atomic.AddInt64(&rounds[3], 1)
		}
	}()
	r, w, err := os.Pipe()
	if err != nil {
		fail("pipe: %v", err)
	}
	wait.Add(2)
	go func() {
		defer wait.Done()
		for i := 0; atomic.LoadInt32(&finish) == 0; i++ {
			if _, err := w.Write([]byte{byte(i)}); err != nil {
				fail("write: %v", err)
			}
			breathe(atomic.AddInt64(&rounds[4], 1) % 50)
		}
		w.Close()
	}()
	go func() {
		defer wait.Done()
		b := make([]byte, 1000)
		want := byte(0)
		for {
			n, err := r.Read(b)
			if n == 0 && err != nil {
				break
			}
			for _, x := range b[:n] {
				if x != want {
					fail("read %d, expected %d", x, want)
				}
				want++
			}
		}
	}()
	for i := 0; i < 5; i++ {
		for atomic.LoadInt64(&rounds[i]) < 2 {
			time.Sleep(time.Millisecond)
		}
	}
	fmt.Println("READY")
	for {
		if _, err := os.Stat(goPath); err == nil {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	for i := 0; i < 5; i++ {
		before := atomic.LoadInt64(&rounds[i])
		for end := time.Now().Add(20 * time.Second); atomic.LoadInt64(&rounds[i]) < before+2; {
			if time.Now().After(end) {
				fail("goroutine %d does not go on", i)
			}
			time.Sleep(time.Millisecond)
		}
	}
	atomic.StoreInt32(&finish, 1)
	wait.Wait()
	fmt.Println("OK")
}
