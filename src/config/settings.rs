use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Faults;
use crate::auth::{IdentityRule, ListenerRules};
use crate::broker::Limits;
use crate::pki::ServerName;
use crate::store::Durability;
use crate::types::{Entrance, Realm};

/// A checked configuration: what `serve` runs on, whatever format it was written in.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The file that it was read from.
    pub file: PathBuf,
    /// The site's name.
    pub name: String,
    /// Who a broker becomes that was started as root.
    pub user: Option<String>,
    /// State and the local door.
    pub data: PathBuf,
    /// The CA, its ledger and the clients' bundles.
    pub pki: PathBuf,
    pub passwords: Option<PathBuf>,
    pub acl: Option<PathBuf>,
    pub identities: Option<PathBuf>,
    /// Whether a weak hash in the password file is made anew when its password comes.
    pub rehash: bool,
    /// Whether the broker may use the CA's key to renew its own certificate.
    pub self_renew: bool,
    /// What happens to a connection whose client's certificate comes to its end.
    pub at_expiry: AtExpiry,
    /// Event loops that share the sessions.
    pub shards: u16,
    /// What survives.
    pub durability: Durability,
    /// How long a commit may wait for more to share it.
    pub commit_delay: Duration,
    pub listeners: Vec<Listener>,
    pub admission: Admission,
    pub limits: Limits,
    pub log: Log,
    /// Where the server certificate comes from, if not from this site's CA or a file that others renew.
    pub acme: Option<Acme>,
    /// Where devices enrol over HTTPS, if at all: the broker then needs the CA's key.
    pub enrolment: Option<SocketAddr>,
    /// Where `/metrics` and `/health` are served on TCP, if at all.
    pub metrics: Option<SocketAddr>,
    /// How often `$SYS/broker/...` is published, if at all.
    pub sys_interval: Option<Duration>,
    pub pid_file: Option<PathBuf>,
    /// It was read from mosquitto.conf: names are whatever its files say.
    pub stands_in: bool,
    /// What it does wrong on purpose.
    pub faults: Faults,
    /// Where it stands in: whether `$CONTROL/broker/v1` answers.
    pub control_api: bool,
    /// The plugins of Mosquitto's that it named, as they call themselves.
    pub plugins: Vec<&'static str>,
}

impl Settings {
    /// Where sessions and messages lie.
    pub fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    pub fn ledger(&self) -> PathBuf {
        self.pki.join("ledger.jsonl")
    }

    /// Each certificate that was ever issued, in a file of its own.
    pub fn issued(&self) -> PathBuf {
        self.pki.join("issued")
    }

    pub fn ca_certificate(&self) -> PathBuf {
        self.pki.join("ca.crt")
    }

    /// What the CA before this one says of it, while both are trusted.
    pub fn ca_link(&self) -> PathBuf {
        self.pki.join("ca-new-with-old.crt")
    }

    /// The key of the CA before this one, for its revocation list.
    pub fn ca_old_key(&self) -> PathBuf {
        self.pki.join("ca-old.key")
    }

    /// Tokens for enrolment, by the hashes of their secrets.
    pub fn tokens(&self) -> PathBuf {
        self.pki.join("tokens.json")
    }

    /// The revocation list that we sign.
    pub fn crl(&self) -> PathBuf {
        self.pki.join("ca.crl")
    }

    /// Who signed the CA, where it is not its own root: what clients trust then.
    pub fn ca_root(&self) -> PathBuf {
        self.pki.join("root.crt")
    }

    pub fn ca_key(&self) -> PathBuf {
        self.pki.join("ca.key")
    }

    /// What each TLS listener has, in their order.
    pub fn tls_files(&self) -> impl Iterator<Item = &TlsFiles> {
        self.listeners.iter().filter_map(|listener| match &listener.transport {
            Transport::Tls(files) => Some(files),
            Transport::Tcp | Transport::Unix => None,
        })
    }

    /// Password files: everybody's, and listeners' own.
    pub fn password_files(&self) -> impl Iterator<Item = &PathBuf> {
        let own = self.listeners.iter().filter_map(|listener| listener.files.as_ref()?.passwords.as_ref());
        self.passwords.iter().chain(own)
    }

    /// Passwords and ACL that a listener goes by.
    pub fn files_of<'s>(&'s self, listener: &'s Listener) -> (Option<&'s Path>, Option<&'s Path>) {
        let own = listener.files.as_ref().map(|files| (&files.passwords, &files.acl));
        let (passwords, acl) = own.unwrap_or((&self.passwords, &self.acl));
        (passwords.as_deref(), acl.as_deref())
    }

    /// Passwords and ACL of each realm: listeners may share one.
    pub fn realms(&self) -> BTreeMap<Realm, (Option<&Path>, Option<&Path>)> {
        self.listeners.iter().map(|listener| (listener.entrance.realm, self.files_of(listener))).collect()
    }

    /// Whether all listeners go by the same, and no topic of theirs is mounted.
    pub fn is_one_realm(&self) -> bool {
        self.listeners.iter().all(|listener| listener.entrance.realm == Realm::SITE)
    }

    /// ACL files, likewise.
    pub fn acl_files(&self) -> impl Iterator<Item = &PathBuf> {
        let own = self.listeners.iter().filter_map(|listener| listener.files.as_ref()?.acl.as_ref());
        self.acl.iter().chain(own)
    }

    pub fn folder(&self) -> PathBuf {
        self.file.parent().map(PathBuf::from).unwrap_or_default()
    }
}

/// A CA that speaks ACME (RFC 8555), and what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The directory's URL.
    pub directory: String,
    pub names: Vec<ServerName>,
    /// An e-mail address.
    pub contact: Option<String>,
    pub challenge: Challenge,
    /// Where challenges are answered.
    pub address: SocketAddr,
    /// Whom to believe to be the directory; `None`: those whom the system trusts.
    pub roots: Option<PathBuf>,
}

/// How one proves to an ACME CA that a name is one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Challenge {
    #[default]
    Http01,
    TlsAlpn01,
}

impl Challenge {
    pub fn as_str(self) -> &'static str {
        match self {
            Challenge::Http01 => "http-01",
            Challenge::TlsAlpn01 => "tls-alpn-01",
        }
    }

    /// Where the CA asks.
    pub fn port(self) -> u16 {
        match self {
            Challenge::Http01 => 80,
            Challenge::TlsAlpn01 => 443,
        }
    }
}

/// What becomes of a client that is connected when its certificate expires.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AtExpiry {
    #[default]
    Disconnect,
    Keep,
}

/// A place where clients come in.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub address: ListenerAddress,
    pub transport: Transport,
    /// Whether MQTT comes by WebSocket on it.
    pub websocket: Option<WebSocket>,
    /// What it serves by HTTP: instead of MQTT, or beside its WebSockets.
    pub pages: Option<Pages>,
    pub rules: ListenerRules,
    pub connections_max: usize,
    /// A proxy is before it, and says first whose connection it passes on (PROXY protocol, versions 1 and 2).
    pub proxied: bool,
    /// What it lays down for its clients.
    pub entrance: Arc<Entrance>,
    /// Its own passwords and ACL, in place of everybody's.
    pub files: Option<ListenerFiles>,
    /// The only network interface that it takes connections from.
    pub interface: Option<String>,
    /// Whether it takes MQTT 3.1, 3.1.1 and 5.0.
    pub versions: [bool; 3],
    pub client_ids: ClientIds,
}

/// Who comes in by a listener, and what they may do: `None` for no passwords, or for no ACL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerFiles {
    pub passwords: Option<PathBuf>,
    pub acl: Option<PathBuf>,
}

/// Says of each listener in which realm its clients are; `site`: passwords and ACL of those without their own.
pub(super) fn set_realms(listeners: &mut [Listener], site: (&Option<PathBuf>, &Option<PathBuf>)) {
    // Whose name nobody checks is not whoever proves to have it elsewhere.
    let believes = |listener: &Listener| {
        let rules = &listener.rules;
        rules.unchecked && rules.allow_anonymous && rules.identity == IdentityRule::UserName
    };
    let believed = listeners.iter().any(|listener| !believes(listener));
    for listener in listeners {
        let own = listener.files.as_ref().map_or(site, |files| (&files.passwords, &files.acl));
        let believed = believed && believes(listener);
        let text =
            |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let realm = match own == site && listener.entrance.mount_point.is_empty() && !believed {
            true => Realm::SITE,
            false => {
                let (passwords, acl) = (text(own.0), text(own.1));
                Realm::of(&[&passwords, &acl, &listener.entrance.mount_point, if believed { "believed" } else { "" }])
            }
        };
        listener.entrance = Arc::new(Entrance { realm, ..Entrance::clone(&listener.entrance) });
    }
}

/// What a listener does about client ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIds {
    /// A client is called as its user name is, whatever it says.
    pub from_user_name: bool,
    /// An empty one is replaced; else it is refused.
    pub may_be_empty: bool,
    /// What one that is made up begins with.
    pub prefix: String,
    /// What all have to begin with.
    pub required_prefix: Option<String>,
}

impl Default for ClientIds {
    fn default() -> ClientIds {
        ClientIds { from_user_name: false, may_be_empty: true, prefix: "auto-".to_owned(), required_prefix: None }
    }
}

/// Who may begin a WebSocket (RFC 6455 section 10.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocket {
    /// Pages whose scripts may: `https://panel.example`, `*` for all. What is no browser says no Origin, and may.
    pub origins: Vec<String>,
}

/// What is served by HTTP, as Mosquitto does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// `/api/v1/...`, and nothing of MQTT: whoever may come in there may read what the ACL lets him, files too.
    pub api: bool,
    /// Files, for everybody where they are beside WebSockets.
    pub folder: Option<PathBuf>,
}

impl Listener {
    /// `tcp`, `tls`, `unix`, `ws`, `wss`, `http` or `https`.
    pub fn transport_name(&self) -> &'static str {
        if self.pages.as_ref().is_some_and(|pages| pages.api) {
            return if matches!(self.transport, Transport::Tls(_)) { "https" } else { "http" };
        }
        match (&self.transport, &self.websocket) {
            (Transport::Tcp, None) => "tcp",
            (Transport::Tcp, Some(_)) => "ws",
            (Transport::Tls(_), None) => "tls",
            (Transport::Tls(_), Some(_)) => "wss",
            (Transport::Unix, _) => "unix",
        }
    }
}

/// Where a listener binds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListenerAddress {
    /// 127.0.0.1 and ::1; a family that is missing is logged.
    Loopback(u16),
    /// Every address of this host, both families.
    All(u16),
    Ip(IpAddr, u16),
    Unix(PathBuf),
}

impl ListenerAddress {
    pub fn port(&self) -> Option<u16> {
        match self {
            ListenerAddress::Loopback(port) | ListenerAddress::All(port) | ListenerAddress::Ip(_, port) => Some(*port),
            ListenerAddress::Unix(_) => None,
        }
    }

    /// Whether other machines can connect.
    pub fn is_remote(&self) -> bool {
        match self {
            ListenerAddress::All(_) => true,
            ListenerAddress::Ip(address, _) => !address.is_loopback(),
            ListenerAddress::Loopback(_) | ListenerAddress::Unix(_) => false,
        }
    }
}

impl fmt::Display for ListenerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenerAddress::Loopback(port) => write!(f, "loopback:{port}"),
            ListenerAddress::All(port) => write!(f, "all:{port}"),
            ListenerAddress::Ip(address, port) => write!(f, "{}", SocketAddr::new(*address, *port)),
            ListenerAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What runs on a listener.
#[derive(Clone, Debug, PartialEq)]
pub enum Transport {
    Tcp,
    Tls(TlsFiles),
    Unix,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// A file, or a folder of files that are named by the hashes of their subjects, as `openssl rehash` does.
    pub client_ca: PathBuf,
    /// Such a folder beside the file.
    pub client_ca_folder: Option<PathBuf>,
    /// Revocation lists of that CA, where somebody else keeps them.
    pub client_crl: Option<PathBuf>,
    /// What clients verify the certificate with, where this site's CA did not issue it.
    pub server_ca: Option<PathBuf>,
    pub client_certs: ClientCerts,
    pub min_version: TlsVersion,
    /// By rustls' names, in the order in which the server prefers them; none: all, in the client's order.
    pub cipher_suites: Vec<&'static str>,
    pub key_log: Option<KeyLog>,
}

/// Where the secrets of TLS sessions are written, for those who have to read the traffic: a line each, in the format that
/// browsers' SSLKEYLOGFILE has.
#[derive(Clone, Debug)]
pub struct KeyLog(Arc<std::fs::File>);

impl KeyLog {
    /// A file of the caller's own, mode 0600, to append to.
    pub fn open(path: &Path) -> std::io::Result<KeyLog> {
        let mut options = std::fs::OpenOptions::new();
        options.create(true).append(true).mode(0o600);
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = options.custom_flags(flags.bits() as i32).open(path)?;
        let metadata = file.metadata()?;
        let is_own = metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw();
        match is_own && metadata.mode() & 0o077 == 0 {
            true => Ok(KeyLog(Arc::new(file))),
            false => {
                Err(std::io::Error::other("it has to be a file of this user's that nobody else may read (chmod 600)"))
            }
        }
    }

    pub fn write(&self, line: &str) {
        // What cannot be written down is no reason to refuse a client.
        drop((&*self.0).write_all(line.as_bytes()));
    }
}

impl PartialEq for KeyLog {
    fn eq(&self, other: &KeyLog) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What a TLS listener asks of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ClientCerts {
    Off,
    #[default]
    Optional,
    Required,
}

impl ClientCerts {
    pub fn as_str(self) -> &'static str {
        match self {
            ClientCerts::Off => "off",
            ClientCerts::Optional => "optional",
            ClientCerts::Required => "required",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TlsVersion {
    #[default]
    V12,
    V13,
}

/// Bounds of the gate: what a client may cost before it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    /// Handshakes and CONNECTs under way at once.
    pub pending_max: usize,
    pub pending_per_address_max: usize,
    /// For the TLS handshake and CONNECT together.
    pub connect_timeout: Duration,
    /// Largest CONNECT, bytes.
    pub connect_size_max: usize,
    /// Passwords that are hashed at once.
    pub hashing_max: usize,
    /// Wrong passwords before attempts are throttled.
    pub wrong_passwords_max: u32,
    /// Longest that a throttle lasts.
    pub throttle_max: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `info`, or `info,lockgate::gate=debug`.
    pub level: String,
    pub format: LogFormat,
    pub destinations: Vec<LogDestination>,
    pub style: LogStyle,
    /// Which of syslog's facilities local0 to local7 lines have; `None`: daemon.
    pub facility: Option<u8>,
}

/// The targets of lines that tell of each subscription, and of each that ends.
pub const SUBSCRIBE_LINES: &str = "lockgate::subscribe";
pub const UNSUBSCRIBE_LINES: &str = "lockgate::unsubscribe";

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogDestination {
    Stderr,
    Stdout,
    Syslog,
    /// `$SYS/broker/log/...`, as messages.
    Topic,
    /// Opened anew when the configuration is read anew.
    File(PathBuf),
    Nowhere,
}

/// What a log line looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogStyle {
    Own,
    /// Mosquitto's time and words.
    Mosquitto {
        timestamp: bool,
        /// As strftime(3) has it; `None`: seconds since 1970.
        format: Option<String>,
        /// Whether connections and their ends have lines.
        connections: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

impl Default for Admission {
    fn default() -> Admission {
        Admission {
            connections_max: 100_000,
            connections_per_address_max: 10_000,
            pending_max: 2_000,
            pending_per_address_max: 500,
            connect_timeout: Duration::from_secs(10),
            connect_size_max: 256 * 1024,
            hashing_max: 2,
            wrong_passwords_max: 5,
            throttle_max: Duration::from_secs(60),
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log {
            level: "info".to_owned(),
            format: LogFormat::Human,
            destinations: vec![LogDestination::Stderr],
            style: LogStyle::Own,
            facility: None,
        }
    }
}
