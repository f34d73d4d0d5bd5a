//! `/metrics` in OpenMetrics text, pulled: a scrape is the only thing that makes work.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Longest request head that is read, in bytes.
const REQUEST_BYTES_MAX: u64 = 8 * 1024;
/// A scraper that takes longer than this is hung up on.
const SCRAPE_DEADLINE: Duration = Duration::from_secs(5);

/// Serves `GET /metrics` until dropped. `gather` is called once per scrape and fills a registry.
/// One scrape is served at a time.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn serve<F, G>(listen: SocketAddr, mut gather: F) -> std::io::Result<()>
where
    F: FnMut() -> G,
    G: Future<Output = Registry>,
{
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: scraping can wait, the daemon's work cannot.
                tracing::warn!(%error, "metrics: cannot accept");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        match tokio::time::timeout(SCRAPE_DEADLINE, answer(stream, &mut gather)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%peer, %error, "metrics: scrape failed"),
            Err(_) => tracing::debug!(%peer, "metrics: scrape took too long"),
        }
    }
}

/// Registers what the reactor of a daemon did: requests of its shells and calls into the kernel.
pub fn register_reactor(registry: &mut Registry, c: reactor::Counters) {
    let events = Family::<[(&'static str, &'static str); 1], Counter>::default();
    for (kind, value) in [
        ("turns", c.turns),
        ("enters", c.enters),
        ("sleeps", c.sleeps),
        ("sqes", c.sqes),
        ("cqes", c.cqes),
        ("wakeups", c.wakeups),
        ("ops", c.ops),
        ("continued", c.continued),
        ("queue_full", c.queue_full),
    ] {
        events.get_or_create(&[("kind", kind)]).inc_by(value);
    }
    registry.register("reactor_events", "What the IO thread did", events);
}

async fn answer<F, G>(stream: TcpStream, gather: &mut F) -> std::io::Result<()>
where
    F: FnMut() -> G,
    G: Future<Output = Registry>,
{
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    (&mut stream)
        .take(REQUEST_BYTES_MAX)
        .read_line(&mut request)
        .await?;
    let (status, body) = match request.split(' ').collect::<Vec<_>>()[..] {
        ["GET", "/metrics", ..] => match encode(&gather().await) {
            Ok(text) => ("200 OK", text),
            Err(error) => ("500 Internal Server Error", format!("{error}\n")),
        },
        ["GET", ..] => ("404 Not Found", "only /metrics is here\n".to_owned()),
        _ => (
            "405 Method Not Allowed",
            "only GET is understood\n".to_owned(),
        ),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; \
         charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn encode(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(text)
}

#[cfg(test)]
mod test {
    use super::*;

    async fn get(at: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn a_scrape_gathers_and_other_paths_do_not() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let at: SocketAddr = {
                let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                probe.local_addr().unwrap()
            };
            let gather = || async {
                let mut registry = Registry::default();
                let turns = Counter::<u64>::default();
                turns.inc_by(7);
                registry.register("ubs_turns", "Turns of the reactor", turns);
                registry
            };
            let serving = async { serve(at, gather).await.unwrap() };
            let asking = async {
                tokio::task::yield_now().await;
                let hit = get(at, "GET /metrics HTTP/1.1\r\n\r\n").await;
                assert!(hit.starts_with("HTTP/1.1 200 OK"), "{hit}");
                assert!(hit.contains("ubs_turns_total 7"), "{hit}");
                let miss = get(at, "GET / HTTP/1.1\r\n\r\n").await;
                assert!(miss.starts_with("HTTP/1.1 404"), "{miss}");
                let post = get(at, "POST /metrics HTTP/1.1\r\n\r\n").await;
                assert!(post.starts_with("HTTP/1.1 405"), "{post}");
            };
            tokio::select! { () = serving => unreachable!("serves for ever"), () = asking => {} }
        });
    }
}
