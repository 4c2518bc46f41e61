package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// mutexes has workers take one lock again and again until the key "over" is there and each has had it three times since:
// the most that had it at the same time, how often it was taken, and the errors with which a Lock ended.
func mutexes(client *clientv3.Client, workers int) told {
	var inside, most, taken atomic.Int64
	var over atomic.Bool
	var noting sync.Mutex
	refused := map[string]int{}
	go func() {
		for !over.Load() {
			if answer, err := client.Get(context.Background(), "over"); err == nil && len(answer.Kvs) > 0 {
				over.Store(true)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	var all sync.WaitGroup
	for range workers {
		all.Add(1)
		go func() {
			defer all.Done()
			session, err := concurrency.NewSession(client, concurrency.WithTTL(60))
			check(err)
			defer session.Close()
			for since := 0; since < 3; {
				mutex := concurrency.NewMutex(session, "x/lock")
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				err := mutex.Lock(ctx)
				cancel()
				if err != nil {
					noting.Lock()
					refused[err.Error()]++
					noting.Unlock()
					time.Sleep(20 * time.Millisecond)
					continue
				}
				now := inside.Add(1)
				for known := most.Load(); now > known && !most.CompareAndSwap(known, now); known = most.Load() {
				}
				taken.Add(1)
				if over.Load() {
					since++
				}
				time.Sleep(20 * time.Millisecond)
				inside.Add(-1)
				for mutex.Unlock(context.Background()) != nil {
					time.Sleep(20 * time.Millisecond)
				}
			}
		}()
	}
	all.Wait()
	return told{"most": most.Load(), "taken": taken.Load(), "refused": refused}
}
