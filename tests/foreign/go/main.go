// Trials with etcd's own client, each of which prints what came as one JSON object.
//
//	trials deadlines ENDPOINT SECONDS   300 callers with time-outs of 500 ms on the key "z", whose shard is stopped;
//	                                    beside them Puts, a watch and a lease on "a"
//	trials waiting ENDPOINT COUNT       COUNT reads of "z", whose shard is stopped, then Puts of "a"
//	trials fragments ENDPOINT KEYS SIZE puts KEYS values of SIZE bytes below "a/", then watches them from before
//	trials response ENDPOINT FRAGMENT LIMIT
//	                                    puts ten values of 1 MiB below "foo", then watches them from before, as etcd's
//	                                    TestWatchFragment... do: what the first response holds. FRAGMENT is true or
//	                                    false, LIMIT the bytes that the client takes as one message, 0 for any
//	trials sync ENDPOINT                takes the endpoints from MemberList, at once and again and again, then uses them
//	trials auth ENDPOINT USER PASSWORD ROUNDS SECONDS
//	                                    ROUNDS times, with SECONDS between them: puts "a", "k" and "z" as a user, reads
//	                                    and deletes them all; a watch of all keys beside it
//	trials mutexes ENDPOINT COUNT       COUNT workers with a session each take the lock "x/lock" again and again, until the
//	                                    key "over" is there
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

type told map[string]any

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	check(err)
	return value
}

// puts writes "a" until done is closed, or count times; how many failed, and how.
func puts(client *clientv3.Client, done <-chan struct{}, count int) (made int, failed []string) {
	failed = []string{} // not null in JSON
	for made < count {
		select {
		case <-done:
			return made, failed
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := client.Put(ctx, "a", strconv.Itoa(made))
		cancel()
		made++
		if err != nil {
			failed = append(failed, err.Error())
		}
		time.Sleep(5 * time.Millisecond)
	}
	return made, failed
}

func deadlines(client *clientv3.Client, seconds int) told {
	lease, err := client.Grant(context.Background(), 6)
	check(err)
	alive, err := client.KeepAlive(context.Background(), lease.ID)
	check(err)
	var renewed, events atomic.Int64
	leaseEnded := make(chan struct{})
	go func() {
		for range alive {
			renewed.Add(1)
		}
		close(leaseEnded)
	}()
	watched := make(chan struct{})
	go func() {
		for message := range client.Watch(context.Background(), "a", clientv3.WithCreatedNotify()) {
			if message.Created {
				close(watched)
			}
			events.Add(int64(len(message.Events)))
		}
	}()
	<-watched
	done := make(chan struct{})
	var callers sync.WaitGroup
	var late, other atomic.Int64
	for range 300 {
		callers.Add(1)
		go func() {
			defer callers.Done()
			for {
				select {
				case <-done:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
				if _, err := client.Get(ctx, "z"); err != nil && ctx.Err() != nil {
					late.Add(1)
				} else {
					other.Add(1)
				}
				cancel()
			}
		}()
	}
	time.AfterFunc(time.Duration(seconds)*time.Second, func() { close(done) })
	made, failed := puts(client, done, 1<<30)
	callers.Wait()
	time.Sleep(200 * time.Millisecond)
	ended := false
	select {
	case <-leaseEnded:
		ended = true
	default:
	}
	return told{"late": late.Load(), "other": other.Load(), "puts": made, "failed": failed, "events": events.Load(), "lease_ended": ended}
}

func waiting(client *clientv3.Client, count int) told {
	ctx, cancel := context.WithCancel(context.Background())
	var readers sync.WaitGroup
	for range count {
		readers.Add(1)
		go func() {
			defer readers.Done()
			_, _ = client.Get(ctx, "z")
		}()
	}
	time.Sleep(time.Second)
	made, failed := puts(client, nil, 32)
	cancel()
	readers.Wait()
	return told{"puts": made, "failed": failed}
}

func fragments(client *clientv3.Client, keys, size int) told {
	var first int64
	value := strings.Repeat("v", size)
	for index := range keys {
		done, err := client.Put(context.Background(), fmt.Sprintf("a/%05d", index), value)
		check(err)
		if index == 0 {
			first = done.Header.Revision
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	began := time.Now()
	events := 0
	for message := range client.Watch(ctx, "a/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithFragment()) {
		check(message.Err())
		events += len(message.Events)
		if events >= keys {
			break
		}
	}
	return told{"events": events, "seconds": time.Since(began).Seconds()}
}

func response(client *clientv3.Client, fragment bool) told {
	var first int64
	for index := range 10 {
		done, err := client.Put(context.Background(), fmt.Sprint("foo", index), strings.Repeat("a", 1024*1024))
		check(err)
		if index == 0 {
			first = done.Header.Revision
		}
	}
	options := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(first)}
	if fragment {
		options = append(options, clientv3.WithFragment())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	message := <-client.Watch(ctx, "foo", options...)
	what := told{"events": len(message.Events), "error": ""}
	if err := message.Err(); err != nil {
		what["error"] = err.Error()
	}
	return what
}

func syncs(client *clientv3.Client) told {
	check(client.Sync(context.Background()))
	synced := client.Endpoints()
	time.Sleep(700 * time.Millisecond) // AutoSync has done it a few times
	found := []string{}
	for _, key := range []string{"a", "j", "z"} {
		_, err := client.Put(context.Background(), key, key)
		check(err)
	}
	all, err := client.Get(context.Background(), "", clientv3.WithFromKey())
	check(err)
	for _, pair := range all.Kvs {
		found = append(found, string(pair.Key))
	}
	return told{"synced": synced, "endpoints": client.Endpoints(), "keys": found}
}

func withUser(client *clientv3.Client, rounds, seconds int) told {
	failed := []string{}
	note := func(err error) {
		if err != nil {
			failed = append(failed, err.Error())
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var puts, deletes atomic.Int64
	watched := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for message := range client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithCreatedNotify()) {
			if message.Created {
				close(watched)
			}
			note(message.Err())
			for _, event := range message.Events {
				if event.Type == clientv3.EventTypePut {
					puts.Add(1)
				} else {
					deletes.Add(1)
				}
			}
		}
	}()
	<-watched
	read, deleted := 0, int64(0)
	for range rounds {
		for _, key := range []string{"a", "k", "z"} {
			_, err := client.Put(ctx, key, "v")
			note(err)
		}
		if all, err := client.Get(ctx, "", clientv3.WithPrefix()); err != nil {
			note(err)
		} else {
			read += len(all.Kvs)
		}
		time.Sleep(time.Duration(seconds) * time.Second)
		if all, err := client.Delete(ctx, "", clientv3.WithPrefix()); err != nil {
			note(err)
		} else {
			deleted += all.Deleted
		}
	}
	for range 100 {
		if deletes.Load() >= deleted {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	cancel()
	<-ended
	return told{"failed": failed, "read": read, "deleted": deleted, "events": []int64{puts.Load(), deletes.Load()}}
}

func main() {
	config := clientv3.Config{Endpoints: []string{os.Args[2]}, DialTimeout: 5 * time.Second}
	if os.Args[1] == "response" {
		config.MaxCallRecvMsgSize = number(os.Args[4])
	}
	if os.Args[1] == "sync" {
		config.AutoSyncInterval = 200 * time.Millisecond
	}
	if os.Args[1] == "auth" {
		config.Username, config.Password = os.Args[3], os.Args[4]
	}
	client, err := clientv3.New(config)
	check(err)
	var what told
	switch os.Args[1] {
	case "deadlines":
		what = deadlines(client, number(os.Args[3]))
	case "waiting":
		what = waiting(client, number(os.Args[3]))
	case "fragments":
		what = fragments(client, number(os.Args[3]), number(os.Args[4]))
	case "auth":
		what = withUser(client, number(os.Args[5]), number(os.Args[6]))
	case "response":
		what = response(client, os.Args[3] == "true")
	case "sync":
		what = syncs(client)
	case "mutexes":
		what = mutexes(client, number(os.Args[3]))
	default:
		check(fmt.Errorf("no trial %s", os.Args[1]))
	}
	check(json.NewEncoder(os.Stdout).Encode(what))
	_ = client.Close()
}
