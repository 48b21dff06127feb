// Asks for addresses from goroutines; prints what it asks for as `ASK kind address:port`. No C library below it.
package main

import (
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

func must(err error) {
	if err != nil {
		fmt.Printf("FAIL: %v\n", err)
		os.Exit(1)
	}
}

func talk(server net.Listener) {
	near, err := net.DialTimeout("tcp", server.Addr().String(), 10*time.Second)
	must(err)
	far, err := server.Accept()
	must(err)
	_, err = near.Write([]byte("word"))
	must(err)
	buffer := make([]byte, 4)
	_, err = far.Read(buffer)
	must(err)
	for _, end := range []net.Conn{near, far} {
		must(end.(*net.TCPConn).SetLinger(0))
		must(end.Close())
	}
}

func listen() net.Listener {
	server, err := net.Listen("tcp4", "127.0.0.1:0")
	must(err)
	fmt.Printf("ASK tcp %s\n", server.Addr())
	return server
}

func main() {
	var wait sync.WaitGroup
	for i := 0; i < 4; i++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			server := listen()
			for k := 0; k < 20; k++ {
				talk(server)
			}
			server.Close()
		}()
	}
	wait.Wait()
	datagrams, err := net.ListenPacket("udp4", "127.0.0.1:0")
	must(err)
	fmt.Println("ASK udp 127.0.0.1:9")
	_, err = datagrams.WriteTo([]byte("word"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9})
	must(err)
	datagrams.Close()
	server := listen()
	fmt.Printf("AGAIN %d\n", server.Addr().(*net.TCPAddr).Port)
	talk(server)
	fmt.Printf("READY pid %d\n", os.Getpid())
	for {
		if _, err := os.Stat(os.Args[1]); err == nil {
			break
		}
		talk(server)
		time.Sleep(5 * time.Millisecond)
	}
	fmt.Println("OK")
}
