use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket as RawSocket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::Gate;
use super::admit::{Arrival, Stream};
use crate::config::{Listener, ListenerAddress};
use crate::handover::Peer;

#[derive(Debug, Error)]
pub enum ListenError {
    #[error("cannot listen on {address} (listener {listener}): {}", explain(.error))]
    Bind { listener: String, address: String, error: io::Error },
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use; stop what uses it (`ss -ltnp` shows it) or choose another port".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "not allowed; ports below 1024 need a capability (see systemd/lockgate.service)".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "this host does not have the address".to_owned(),
        _ => error.to_string(),
    }
}

/// A listener's sockets, bound and not yet accepting.
pub struct Bound {
    pub listener: Listener,
    sockets: Vec<BoundSocket>,
}

enum BoundSocket {
    Tcp(std::net::TcpListener, SocketAddr),
    Unix(std::os::unix::net::UnixListener),
}

/// A listener that accepts; stops when dropped.
pub struct Listening {
    /// As configured.
    pub listener: Listener,
    /// Where clients can come, with the ports that the kernel chose.
    pub addresses: Vec<String>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let ListenerAddress::Unix(path) = &self.listener.address {
            drop(std::fs::remove_file(path));
        }
    }
}

/// Binds a listener's sockets. A default family that is missing (no IPv6) is logged, not fatal.
pub fn bind(listener: &Listener) -> Result<Bound, ListenError> {
    let sockets = match &listener.address {
        ListenerAddress::Unix(path) => vec![BoundSocket::Unix(bind_unix(listener, path)?)],
        ListenerAddress::Ip(address, port) => vec![bind_tcp(listener, SocketAddr::new(*address, *port), true)?],
        ListenerAddress::All(port) => {
            let all = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), *port);
            match bind_tcp(listener, all, false) {
                Ok(bound) => vec![bound],
                Err(error) if is_family_missing(&error) => {
                    info!("listener {}: there is no IPv6 here, listening on IPv4 alone", listener.address);
                    vec![bind_tcp(listener, SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), *port), true)?]
                }
                Err(error) => return Err(error),
            }
        }
        ListenerAddress::Loopback(port) => bind_loopback(listener, *port)?,
    };
    Ok(Bound { listener: listener.clone(), sockets })
}

fn bind_loopback(listener: &Listener, port: u16) -> Result<Vec<BoundSocket>, ListenError> {
    // The kernel chooses a port for the first family; the second may find it taken.
    for attempt in 0.. {
        let first = bind_tcp(listener, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), true);
        let chosen = match &first {
            Ok(BoundSocket::Tcp(_, address)) => address.port(),
            _ => port,
        };
        let second = bind_tcp(listener, SocketAddr::from((Ipv6Addr::LOCALHOST, chosen)), true);
        return match (first, second) {
            (Ok(v4), Ok(v6)) => Ok(vec![v4, v6]),
            (Ok(one), Err(error)) | (Err(error), Ok(one)) if is_family_missing(&error) => {
                info!("listener {}: one address family is missing here: {error}", listener.address);
                Ok(vec![one])
            }
            (Ok(_), Err(_)) if port == 0 && attempt < 20 => continue,
            (_, Err(error)) | (Err(error), _) => Err(error),
        };
    }
    unreachable!("the loop returns")
}

fn is_family_missing(error: &ListenError) -> bool {
    let ListenError::Bind { error, .. } = error;
    let code = error.raw_os_error().unwrap_or(0);
    code == rustix::io::Errno::AFNOSUPPORT.raw_os_error() || code == rustix::io::Errno::ADDRNOTAVAIL.raw_os_error()
}

fn bind_tcp(listener: &Listener, address: SocketAddr, only_v6: bool) -> Result<BoundSocket, ListenError> {
    let bind = || {
        let socket = RawSocket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
        // A restart does not wait for the old connections' end.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        if let Some(interface) = &listener.interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        socket.bind(&SockAddr::from(address))?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        let std = std::net::TcpListener::from(socket);
        let bound = std.local_addr()?;
        Ok(BoundSocket::Tcp(std, bound))
    };
    bind().map_err(|error| ListenError::Bind {
        listener: listener.address.to_string(),
        address: address.to_string(),
        error,
    })
}

fn bind_unix(listener: &Listener, path: &Path) -> Result<std::os::unix::net::UnixListener, ListenError> {
    let bind = || {
        if let Ok(there) = std::fs::symlink_metadata(path) {
            if !there.file_type().is_socket() {
                return Err(io::Error::other("it exists and is no socket; name another path, or move it away"));
            }
            match std::os::unix::net::UnixStream::connect(path) {
                // What a broker that died left behind; a living one answers.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                Err(error) => return Err(error),
                Ok(_) => return Err(io::Error::from(io::ErrorKind::AddrInUse)),
            }
        }
        let socket = std::os::unix::net::UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    bind().map_err(|error| ListenError::Bind {
        listener: listener.address.to_string(),
        address: path.display().to_string(),
        error,
    })
}

impl Bound {
    /// Starts to accept; to be called within the runtime.
    pub fn start(mut self, gate: &Arc<Gate>) -> io::Result<Listening> {
        let name: Arc<str> = self.listener.address.to_string().into();
        let mut addresses = Vec::new();
        let mut tasks = Vec::new();
        for socket in std::mem::take(&mut self.sockets) {
            let (gate, name) = (gate.clone(), name.clone());
            match socket {
                BoundSocket::Tcp(socket, address) => {
                    addresses.push(address.to_string());
                    let socket = TcpListener::from_std(socket)?;
                    tasks.push(tokio::spawn(async move { accept_tcp(&gate, &name, &socket, address).await }));
                }
                BoundSocket::Unix(socket) => {
                    addresses.push(name.to_string());
                    let socket = UnixListener::from_std(socket)?;
                    tasks.push(tokio::spawn(async move { accept_unix(&gate, &name, &socket).await }));
                }
            }
        }
        Ok(Listening { listener: self.listener.clone(), addresses, tasks })
    }
}

/// Never started: a socket in the file system goes with it.
impl Drop for Bound {
    fn drop(&mut self) {
        for socket in &self.sockets {
            if let (BoundSocket::Unix(_), ListenerAddress::Unix(path)) = (socket, &self.listener.address) {
                drop(std::fs::remove_file(path));
            }
        }
    }
}

impl Listening {
    /// Stops, and gives its port free before this is done.
    pub async fn stop(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            drop(task.await);
        }
    }
}

async fn accept_tcp(gate: &Arc<Gate>, listener: &Arc<str>, socket: &TcpListener, address: SocketAddr) {
    let local: Arc<str> = format!("{}:{}", listener_host(listener), address.port()).into();
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                // Small packets leave at once; whole turns are written together anyway.
                drop(stream.set_nodelay(true));
                arrive(gate, listener, &local, Peer::Network(peer), Stream::Tcp(stream));
            }
            Err(error) => accept_failed(listener, &error).await,
        }
    }
}

fn listener_host(listener: &str) -> &str {
    listener.rsplit_once(':').map_or(listener, |(host, _)| host)
}

async fn accept_unix(gate: &Arc<Gate>, listener: &Arc<str>, socket: &UnixListener) {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => arrive(gate, listener, listener, Peer::Unix, Stream::Unix(stream)),
            Err(error) => accept_failed(listener, &error).await,
        }
    }
}

/// Out of file descriptors, mostly: others have to go first.
async fn accept_failed(listener: &str, error: &io::Error) {
    warn!("listener {listener} cannot accept a connection: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn arrive(gate: &Arc<Gate>, listener: &Arc<str>, local: &Arc<str>, peer: Peer, stream: Stream) {
    gate.stats.accepted.fetch_add(1, Ordering::Relaxed);
    let current = gate.current.load_full();
    // Gone with a reload: its task is about to end.
    let Some(material) = current.listeners.get(&**listener).cloned() else { return };
    let address = match peer {
        // A proxy's address is that of all its clients.
        Peer::Network(address) => Some(address.ip()).filter(|_| !material.proxied),
        Peer::Unix => None,
    };
    match gate.slots.take(listener, material.connections_max, address) {
        Ok((slot, pending)) => {
            let number = gate.next_number();
            let terms = OnceLock::new();
            let (gate, name, listener) = (gate.clone(), listener.clone(), local.clone());
            let arrival = Arrival { gate, current, material, name, listener, peer, number, terms };
            tokio::spawn(async move {
                arrival.admit(stream, slot, pending).await;
            });
        }
        Err(full) => {
            gate.stats.refuse("full");
            warn!(address = %peer, listener = &**local, "turned away: {} is reached", full.key());
        }
    }
}
