//! The configuration that `init` writes: every key with its default and what it is for.

use super::settings::ClientCerts;

/// What `init` was asked for; everything else is written with its default.
#[derive(Clone, Debug)]
pub struct Template {
    pub name: String,
    /// As they are to stand in the file.
    pub data: String,
    pub pki: String,
    /// The plain listener's address and port; `None`: there is none.
    pub plain: Option<(&'static str, u16)>,
    pub tls_port: u16,
    pub client_certs: ClientCerts,
    pub self_renew: bool,
}

impl Default for Template {
    fn default() -> Template {
        Template {
            name: "lockgate".to_owned(),
            data: "../data".to_owned(),
            pki: "../pki".to_owned(),
            plain: Some(("loopback", 1883)),
            tls_port: 8883,
            client_certs: ClientCerts::Optional,
            self_renew: false,
        }
    }
}

/// The file's text. Parsed again, it gives the defaults, but for what `template` says.
pub fn render(template: &Template) -> String {
    let Template { name, data, pki, plain, tls_port, client_certs, self_renew } = template;
    let name = serde_json::to_string(name).expect("a text");
    let plain = match plain {
        Some((address, port)) => format!(
            r#"  # Plain MQTT, readable by whoever listens on the wire. `loopback` is this machine alone
  # (127.0.0.1 and ::1); `all` is every address it has.
  - address: {address}
    port: {port}
    transport: tcp                 # tcp | tls | ws | wss (WebSocket) | unix (a unix listener has `path:` instead)
    allow-anonymous: false         # clients without a name
    min-level: plain               # plain | tls | mtls: refuse what is less protected
    connections-max: 100000
    proxy-protocol: false          # a proxy is before it, and says whose connections it passes on (versions 1 and 2)
"#
        ),
        None => r#"  # Plain MQTT is off. To let this machine alone use it without TLS:
  # - address: loopback
  #   port: 1883
  #   transport: tcp
"#
        .to_owned(),
    };
    let client_certs = client_certs.as_str();
    format!(
        r#"# The configuration of this Lockgate broker. Every key is here with its default.
# Paths start at this file's folder. Times have units (30s, 5m, 2h, 7d), sizes too (64KiB, 16MiB).
# `lockgate serve --check` examines it; `lockgate reload` puts a change into effect.
# Any key can also be set by the environment: LOCKGATE__LIMITS__PACKET_SIZE_MAX=1MiB,
# LOCKGATE__LISTENERS__0__PORT=1884.

name: {name}
user: none                         # who the broker becomes once keys are read and ports bound, if root starts it
data: {data}                      # state, and the socket that the command line uses
pki: {pki}                        # the CA, the server's certificate, the ledger, clients' bundles
passwords: passwd                  # none: nobody has a password
rehash: false                      # may the broker write weak hashes anew ($6$, $7$), when their passwords come?
acl: acl                           # none: everybody may read and write all topics but $...
identities: identities.yaml        # minimum levels; none: there are none
self-renew: {self_renew}                  # may the broker use the CA's key to renew its own certificate?
at-expiry: disconnect              # a connected client whose certificate expires; or keep
response-information: none         # what MQTT 5 clients are told that ask for it: replies/%c, say; %c is the client id
durability: fsync                  # sessions, queued and retained messages survive
                                   #   fsync: a power cut (every acknowledgement waits for the disk)
                                   #   process: a crash of the broker, not of the machine
                                   #   off: nothing; all is in memory
commit-delay: 0ms                  # how long a commit waits for more to share it: spares flash media, delays
                                   # acknowledgements
shards: 1                          # event loops that share the sessions (1 to 64); more than one is an experiment

listeners:
{plain}
  # MQTT over TLS.
  - address: all
    port: {tls_port}
    transport: tls
    certificate: {pki}/server.crt
    key: {pki}/server.key
    server-ca: own                 # own: this site's CA issued it; else the root that clients verify it with
    client-ca: {pki}/ca.crt        # who signs the certificates of clients
    client-crl: none               # a file with that CA's revocation lists, where somebody else keeps them
    client-certs: {client_certs}         # off | optional | required
    identity: default              # default: a certificate, or a name with its password, or both;
                                   # cn | subject: the certificate alone says who it is; user-name: the name alone does
    allow-anonymous: false
    min-level: plain
    connections-max: 100000
    # Rarely needed, and of any listener:
    mount-point: none              # put before all topics of its clients: site1/, say; they do not see it
    passwords: site                # site: the one above; none; or a file of this listener's own
    acl: site                      # the same
    interface: any                 # eth1, say: what comes by others is not taken
    versions: all                  # some of 3.1 3.1.1 5.0
    qos-max: 2                     # where it is lower than `limits.qos-max`
    client-id-from-user-name: false # whatever a client calls itself
    client-id-prefix: none         # what client ids have to begin with
    empty-client-id: true          # replaced by one that is made up, or refused
    assigned-id-prefix: auto-      # what such a one begins with

tls:
  min-version: "1.2"               # "1.2" | "1.3"

# What a client may cost before it is let in. Connections beyond these numbers are closed unanswered.
admission:
  connections-max: 100000          # all listeners together
  connections-per-address-max: 10000
  pending-max: 2000                # handshakes and CONNECTs under way at once
  pending-per-address-max: 500
  connect-timeout: 10s             # for the TLS handshake and CONNECT together
  connect-size-max: 256KiB         # largest CONNECT packet
  hashing-max: 2                   # passwords checked at once
  wrong-passwords-max: 5           # then attempts are throttled, by address and by name
  throttle-max: 60s                # longest wait between attempts

# What a client may cost once it is in. What happens at a limit stands behind it.
limits:
  packet-size-max: 16MiB           # DISCONNECT 0x95
  inflight-max: 1000               # QoS 1 and 2 under way to one client; more wait
  receive-maximum: 100             # QoS 1 and 2 under way from one client: DISCONNECT 0x93
  queued-messages-max: 10000       # waiting for one session: the queue policy decides
  queued-bytes-max: 64MiB
  inflight-bytes-max: 64MiB        # under way to one client
  queue-policy: drop-new           # drop-new | drop-oldest; counted either way
  backlog-bytes-max: 1MiB          # not yet taken by a socket: QoS 0 is dropped, QoS 1 and 2 wait
  subscriptions-max: 10000         # of one session: SUBACK 0x97
  filters-per-subscribe-max: 1000  # DISCONNECT 0x97
  topic-levels-max: 128            # PUBACK 0x90, SUBACK 0x8F
  topic-bytes-max: 65535           # the same
  retained-messages-max: 1000000   # PUBACK 0x97, QoS 0 is dropped
  retained-bytes-max: 1GiB
  sessions-max: 200000             # CONNACK 0x97
  payload-size-max: 256MiB         # a PUBLISH's payload: PUBACK 0x97, QoS 0 is dropped
  qos-max: 2                       # 0 | 1 | 2; DISCONNECT 0x9B
  retain-available: true           # false: DISCONNECT 0x9A
  queue-qos-0: false               # keep QoS 0 too for sessions whose clients are away
  upgrade-qos: false               # a message comes at its subscription's QoS, though it was published with a lower one
  check-retained-source: false     # send what is retained only while its publisher may still write there
  sparkplug-aware: false           # keep birth certificates, retained below $sparkplug/certificates/
  session-expiry-max: never        # clients are told of a shorter one
  keep-alive-max: none             # MQTT 5 clients are told of a shorter one
  topic-alias-max: 32              # aliases that a client may set: DISCONNECT 0x94
  client-topic-alias-max: 32       # aliases that are set for a client, if it takes so many

log:
  level: info                      # error | warn | info | debug | trace, or info,lockgate::gate=debug
  format: human                    # human | json
  to: stderr                       # stderr | stdout | syslog | topic ($SYS/broker/log/...) | a file (opened anew at a
                                   # reload); several with spaces

# How often $SYS/broker/... is published: counts, loads, and the days left to each certificate.
sys-interval: none                 # 10s: publish $SYS/broker/# so often

metrics:
  address: off                     # 127.0.0.1:9883 serves /metrics and /health there

# Devices get certificates for keys of their own here, by HTTPS (EST, RFC 7030), each with a token of
# `lockgate enroll token`. The broker uses the CA's key for it.
enrolment:
  address: off                     # 0.0.0.0:8443

# The server certificate from a CA that speaks ACME (RFC 8555), renewed from there too. Until it has come the
# listeners' files serve as they are; each TLS listener needs `server-ca:`, the root that clients trust then.
acme:
  directory: off                   # https://acme-v02.api.letsencrypt.org/directory
  names: none                      # what it is for: broker.example mqtt.example
  contact: none                    # an e-mail address
  challenge: http-01               # http-01 | tls-alpn-01
  address: 0.0.0.0:80              # where it is answered: the CA comes to port 80 (tls-alpn-01: 443) of these names
  terms-agreed: false              # that you agree to the CA's terms of service
  roots: system                    # system, or a file: whom to believe to be the directory
"#
    )
}
