use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use super::plan::ServerName;

/// What this host is called and reached by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNames {
    /// As the kernel has it; a certificate may not be able to carry it.
    pub host: String,
    /// Host name, `HOST.local`, localhost, loopback addresses, addresses of physical interfaces.
    pub names: Vec<ServerName>,
}

/// Asks the kernel. Bridges, VPNs and containers' interfaces are left out: their addresses are not
/// where clients come from, and they change.
pub fn host_names() -> HostNames {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy().to_ascii_lowercase();
    let mut names = Vec::new();
    if let Ok(name) = ServerName::parse(&host) {
        names.push(name);
    }
    let label = host.split('.').next().unwrap_or_default();
    if label != "localhost"
        && let Ok(name) = ServerName::parse(&format!("{label}.local"))
    {
        names.push(name);
    }
    names.push(ServerName::Dns("localhost".to_owned()));
    names.push(ServerName::Address(IpAddr::from([127, 0, 0, 1])));
    names.push(ServerName::Address(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    let mut addresses: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .filter(|interface| !interface.is_loopback() && is_physical(&interface.name))
        .map(|interface| interface.ip())
        .filter(|address| !is_link_local(address))
        .collect();
    addresses.sort();
    names.extend(addresses.into_iter().map(ServerName::Address));
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    HostNames { host, names }
}

/// A device behind it: a network card, also a virtual machine's.
fn is_physical(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).join("device").exists()
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
