//! The PROXY protocol, versions 1 and 2: a proxy says first whose connection it passes on.

use std::io;
use std::net::SocketAddr;

use ppp::{HeaderResult, PartialResult, v1, v2};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// No header is longer: 16 bytes, and what version 2 may have behind them.
const HEADER_MAX: usize = 4096;

/// Whose connection it is; `None`: the proxy's own (a health check), or it does not say. The header is taken off; what
/// comes behind it is left. Waits for all of it: whoever calls has a deadline.
pub(super) async fn client(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut bytes = Vec::with_capacity(256);
    loop {
        // A byte at a time up to the header's end would cost a call each: looked at first, then taken.
        let mut seen = [0; HEADER_MAX];
        let count = stream.peek(&mut seen).await?;
        if count <= bytes.len() {
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // Nothing more than at the last look: the rest is on its way.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        bytes = seen[..count].to_vec();
        let result = HeaderResult::parse(&bytes);
        if result.is_incomplete() && count < HEADER_MAX {
            continue;
        }
        let (len, client) = match result {
            HeaderResult::V1(Ok(header)) => (header.header.len(), of_v1(&header.addresses)),
            HeaderResult::V2(Ok(header)) => (header.len(), of_v2(&header)),
            HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => return Err(io::ErrorKind::InvalidData.into()),
        };
        let mut taken = vec![0; len];
        stream.read_exact(&mut taken).await?;
        return Ok(client);
    }
}

fn of_v1(addresses: &v1::Addresses) -> Option<SocketAddr> {
    match addresses {
        v1::Addresses::Tcp4(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Tcp6(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Unknown => None,
    }
}

fn of_v2(header: &v2::Header<'_>) -> Option<SocketAddr> {
    match (header.command, header.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(ip)) => Some((ip.source_address, ip.source_port).into()),
        (v2::Command::Proxy, v2::Addresses::IPv6(ip)) => Some((ip.source_address, ip.source_port).into()),
        _ => None,
    }
}
