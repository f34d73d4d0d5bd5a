//! One Cap'n Proto connection: limits, socket options, and an end that closes it for sure.

use capnp::message::ReaderOptions;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use futures::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, BufReader, BufWriter};
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::compat::TokioAsyncReadCompatExt as _;
use ubs_capnp::control_capnp::entrance;

/// Most words of an answer that a client reads: a listing of all volumes.
const ANSWER_WORDS_MAX: usize = 8 * 1024 * 1024;
/// Most words of a message that a member reads: a batch of log entries, a chunk of a snapshot.
const MESSAGE_WORDS_MAX: usize = 1024 * 1024;
/// Deepest nesting of a received message.
const MESSAGE_NESTING_MAX: i32 = 24;
/// A silent peer is probed after this long.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
/// And then this often; three unanswered probes end the connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

fn reader_options(words_max: usize) -> ReaderOptions {
    let mut options = ReaderOptions::new();
    options
        .traversal_limit_in_words(Some(words_max))
        .nesting_limit(MESSAGE_NESTING_MAX);
    options
}

/// For the member's end.
pub(crate) fn server_reader_options() -> ReaderOptions {
    reader_options(MESSAGE_WORDS_MAX)
}

/// No delay, and a dead peer is noticed also by a connection that only waits.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}

/// Both directions of a connection, buffered: a message consists of several pieces, and it should
/// cost one system call. The queue of capnp-rpc flushes after each message.
pub(crate) fn halves(stream: TcpStream) -> (impl AsyncRead + Unpin, impl AsyncWrite + Unpin) {
    let (reader, writer) = stream.compat().split();
    (BufReader::new(reader), BufWriter::new(writer))
}

/// Our end of a connection to a member. Dropping it closes the connection; whatever was asked over
/// it then fails as disconnected.
#[derive(Debug)]
pub(crate) struct Link {
    /// Where it goes, as it was asked for.
    pub(crate) address: String,
    entrance: Entrance,
    closed: Rc<Cell<bool>>,
    task: JoinHandle<()>,
}

struct Entrance(entrance::Client);

impl std::fmt::Debug for Entrance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entrance")
    }
}

impl Link {
    /// Connects within the time given. Needs a `LocalSet`.
    pub(crate) async fn connect(address: &str, within: Duration) -> io::Result<Self> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
        let stream = tokio::time::timeout(within, TcpStream::connect(address))
            .await
            .map_err(|_| late())??;
        tune(&stream)?;
        let (reader, writer) = halves(stream);
        let network = twoparty::VatNetwork::new(
            reader,
            writer,
            Side::Client,
            reader_options(ANSWER_WORDS_MAX),
        );
        let mut system = RpcSystem::new(Box::new(network), None);
        let entrance = Entrance(system.bootstrap(Side::Server));
        let closed = Rc::new(Cell::new(false));
        let task = tokio::task::spawn_local({
            let closed = Rc::clone(&closed);
            let address = address.to_owned();
            async move {
                if let Err(e) = system.await {
                    tracing::debug!(%address, error = %e, "connection to metad ended");
                }
                closed.set(true);
            }
        });
        Ok(Self {
            address: address.to_owned(),
            entrance,
            closed,
            task,
        })
    }

    /// False once the other end has gone.
    pub(crate) fn is_open(&self) -> bool {
        !self.closed.get()
    }

    /// The object every connection begins with.
    pub(crate) fn entrance(&self) -> &entrance::Client {
        &self.entrance.0
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}
