//! Socket calls that are made once per connection, synchronously.

use crate::error::{Errno, SetupError};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// Connections that may wait for `accept`.
const BACKLOG: i32 = 1024;

fn tcp(address: &SocketAddr) -> Result<OwnedFd, rustix::io::Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    net::socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        Some(ipproto::TCP),
    )
}

/// A TCP socket that is to be connected.
pub(super) fn for_connect(to: &SocketAddr) -> Result<OwnedFd, Errno> {
    let fd = tcp(to)?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    Ok(fd)
}

/// What an accepted socket needs. The peer may be gone already, which shows at the first receive.
pub(super) fn accepted(fd: BorrowedFd<'_>) -> SocketAddr {
    let nodelay = sockopt::set_tcp_nodelay(fd, true);
    debug_assert!(nodelay.is_ok(), "set TCP_NODELAY: {nodelay:?}");
    let peer = net::getpeername(fd)
        .ok()
        .flatten()
        .and_then(|any| SocketAddr::try_from(any).ok());
    peer.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
}

pub(super) fn listen(at: &SocketAddr) -> Result<OwnedFd, SetupError> {
    let listening = || {
        let fd = tcp(at)?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        net::bind(&fd, at)?;
        net::listen(&fd, BACKLOG)?;
        Ok(fd)
    };
    listening().map_err(|errno: rustix::io::Errno| SetupError::Call {
        what: format!("listen on {at}"),
        errno: errno.into(),
    })
}

pub(super) fn local_addr(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    SocketAddr::try_from(net::getsockname(fd).ok()?).ok()
}

/// Makes the next close abort the connection. A socket that never connected has nothing to abort.
pub(super) fn reset_on_close(fd: BorrowedFd<'_>) {
    let linger = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
    debug_assert!(linger.is_ok(), "set SO_LINGER: {linger:?}");
}
