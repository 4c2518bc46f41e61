//! Trials with etcd-client (tonic), which opens one stream for each `watch()`, all on one connection.
//!
//! `trials watches ENDPOINT COUNT`: COUNT watches, then a Put of every key; prints what came as one JSON object.

use etcd_client::{Client, Error};
use std::time::Duration;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// Keys that spread over the whole alphabet, so over every shard.
fn key(number: usize) -> String {
    format!("{}-{number}", (b'a' + (number % 26) as u8) as char)
}

async fn watches(endpoint: &str, count: usize) -> Result<(), Error> {
    let mut client = Client::connect([endpoint], None).await?;
    let mut streams = Vec::new();
    let mut failed = 0;
    for number in 0..count {
        let opened = timeout(PATIENCE, client.watch(key(number), None)).await;
        let Ok(Ok(mut stream)) = opened else {
            failed += 1;
            break;
        };
        match timeout(PATIENCE, stream.message()).await {
            Ok(Ok(Some(created))) if created.created() && !created.canceled() => streams.push(stream),
            _ => {
                failed += 1;
                break;
            }
        }
    }
    let mut puts = 0;
    for number in 0..streams.len() {
        if let Ok(Ok(_)) = timeout(PATIENCE, client.put(key(number), "v", None)).await {
            puts += 1;
        }
    }
    let mut events = 0;
    for stream in &mut streams {
        if let Ok(Ok(Some(message))) = timeout(PATIENCE, stream.message()).await {
            events += message.events().len();
        }
    }
    println!(
        "{{\"created\": {}, \"failed\": {failed}, \"puts\": {puts}, \"events\": {events}}}",
        streams.len()
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments[1].as_str() {
        "watches" => watches(&arguments[2], arguments[3].parse().expect("a number")).await,
        other => panic!("no trial {other}"),
    }
}
