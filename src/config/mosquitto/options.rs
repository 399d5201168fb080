//! Every option that mosquitto.conf knows (2.1), and what becomes of it here.

/// What becomes of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It does what it does there.
    Same,
    /// It is not needed, or has no effect here: why.
    Idle(&'static str),
    /// It is refused: what to use instead.
    Refused(&'static str),
    /// Some of what it can say is done: what.
    Partly(&'static str),
    /// Read, and refused where a bridge or a plugin would be begun by it.
    Later(&'static str),
}

use Fate::{Idle, Later, Partly, Refused, Same};

const BRIDGE: Fate = Later("bridges are not there yet: leave the whole block from `connection` on out");
const PLUGIN: Fate = Partly(
    "mosquitto_password_file, mosquitto_acl_file, mosquitto_persist_sqlite and mosquitto_sparkplug_aware are built in and taken by their names; no others are loaded",
);
const PSK: Fate = Refused("rustls has no pre-shared keys: give each device a certificate (`lockgate client add NAME`)");
const KEY_FILE: Fate = Refused("keys lie in files here: name keyfile");
const DURABLE: &str = "what is acknowledged is on the disk at once";

/// Name and fate, in the order of the manual page.
pub const OPTIONS: &[(&str, Fate)] = &[
    // General.
    ("include_dir", Same),
    ("user", Same),
    ("pid_file", Same),
    ("sys_interval", Same),
    ("max_inflight_messages", Same),
    ("max_queued_messages", Same),
    ("max_queued_bytes", Same),
    ("max_inflight_bytes", Same),
    ("max_packet_size", Same),
    ("message_size_limit", Same),
    ("max_keepalive", Same),
    ("global_max_clients", Same),
    ("global_max_connections", Same),
    ("memory_limit", Refused("the limits by name bound memory: max_queued_bytes, max_packet_size, max_connections")),
    ("persistent_client_expiration", Same),
    ("queue_qos0_messages", Same),
    ("retain_available", Same),
    ("retain_expiry_interval", Idle("a retained message goes when its expiry interval is over, without a sweep")),
    ("check_retain_source", Same),
    ("upgrade_outgoing_qos", Same),
    ("allow_duplicate_messages", Idle("one copy is sent, with the identifiers of all subscriptions that match")),
    ("set_tcp_nodelay", Idle("it is always set")),
    ("packet_buffer_size", Idle("an idle connection has no buffer")),
    ("websockets_headers_size", Idle("a request may have 8 KiB")),
    ("clientid_prefixes", Same),
    ("connection_messages", Same),
    ("enable_control_api", Same),
    ("retry_interval", Idle("messages are sent again when a client comes back, and only then")),
    // Listeners.
    ("listener", Same),
    ("port", Same),
    ("bind_address", Same),
    ("bind_interface", Same),
    ("socket_domain", Same),
    ("protocol", Same),
    ("http_dir", Same),
    ("mount_point", Same),
    ("max_connections", Same),
    ("max_qos", Same),
    ("maximum_qos", Same),
    ("max_topic_alias", Same),
    ("max_topic_alias_broker", Same),
    ("accept_protocol_versions", Same),
    ("use_username_as_clientid", Same),
    ("allow_zero_length_clientid", Same),
    ("auto_id_prefix", Same),
    ("listener_auto_id_prefix", Same),
    ("listener_allow_anonymous", Same),
    ("enable_proxy_protocol", Same),
    (
        "proxy_protocol_v2_require_tls",
        Refused("what a proxy says of its clients\' TLS is not looked at: have it pass TLS through"),
    ),
    ("websockets_origin", Same),
    ("websockets_log_level", Idle("there is no libwebsockets here")),
    // TLS.
    ("certfile", Same),
    ("keyfile", Same),
    ("cafile", Same),
    ("capath", Same),
    ("require_certificate", Same),
    ("use_identity_as_username", Same),
    ("use_subject_as_username", Same),
    ("crlfile", Same),
    ("ciphers", Same),
    ("ciphers_tls1.3", Same),
    ("tls_version", Same),
    ("psk_hint", PSK),
    ("psk_file", PSK),
    (
        "disable_client_cert_date_checks",
        Refused("an expired certificate lets nobody in: `lockgate client renew` makes a new one"),
    ),
    ("dhparamfile", Idle("key exchange is by elliptic curves")),
    ("tls_engine", KEY_FILE),
    ("tls_engine_kpass_sha1", KEY_FILE),
    ("tls_keyform", KEY_FILE),
    // Who may do what.
    ("allow_anonymous", Same),
    ("password_file", Same),
    ("acl_file", Same),
    ("per_listener_settings", Same),
    ("plugin", PLUGIN),
    ("auth_plugin", PLUGIN),
    ("global_plugin", PLUGIN),
    ("plugin_load", PLUGIN),
    ("plugin_use", PLUGIN),
    ("auth_plugin_deny_special_chars", Idle("names with + or # match no pattern of the ACL")),
    // Persistence.
    ("persistence", Same),
    ("retained_persistence", Same),
    ("persistence_location", Same),
    ("persistence_file", Idle("the store is a folder of its own")),
    ("autosave_interval", Idle(DURABLE)),
    ("autosave_on_changes", Idle(DURABLE)),
    // Logging.
    ("log_dest", Same),
    ("log_type", Same),
    ("log_timestamp", Same),
    ("log_timestamp_format", Same),
    ("log_facility", Same),
    // Bridges.
    ("connection", BRIDGE),
    ("address", BRIDGE),
    ("addresses", BRIDGE),
    ("topic", BRIDGE),
    ("remote_clientid", BRIDGE),
    ("clientid", BRIDGE),
    ("remote_username", BRIDGE),
    ("username", BRIDGE),
    ("remote_password", BRIDGE),
    ("password", BRIDGE),
    ("local_clientid", BRIDGE),
    ("local_username", BRIDGE),
    ("local_password", BRIDGE),
    ("cleansession", BRIDGE),
    ("local_cleansession", BRIDGE),
    ("try_private", BRIDGE),
    ("notifications", BRIDGE),
    ("notifications_local_only", BRIDGE),
    ("notification_topic", BRIDGE),
    ("keepalive_interval", BRIDGE),
    ("restart_timeout", BRIDGE),
    ("start_type", BRIDGE),
    ("idle_timeout", BRIDGE),
    ("threshold", BRIDGE),
    ("round_robin", BRIDGE),
    ("bridge_protocol_version", BRIDGE),
    ("bridge_attempt_unsubscribe", BRIDGE),
    ("bridge_outgoing_retain", BRIDGE),
    ("bridge_max_packet_size", BRIDGE),
    ("bridge_max_topic_alias", BRIDGE),
    ("bridge_receive_maximum", BRIDGE),
    ("bridge_session_expiry_interval", BRIDGE),
    ("bridge_bind_address", BRIDGE),
    ("bridge_tcp_keepalive", BRIDGE),
    ("bridge_tcp_user_timeout", BRIDGE),
    ("bridge_cafile", BRIDGE),
    ("bridge_capath", BRIDGE),
    ("bridge_certfile", BRIDGE),
    ("bridge_keyfile", BRIDGE),
    ("bridge_insecure", BRIDGE),
    ("bridge_tls_version", BRIDGE),
    ("bridge_alpn", BRIDGE),
    ("bridge_tls_use_os_certs", BRIDGE),
    ("bridge_ciphers", BRIDGE),
    ("bridge_ciphers_tls1.3", BRIDGE),
    ("bridge_require_ocsp", BRIDGE),
    ("bridge_identity", BRIDGE),
    ("bridge_psk", BRIDGE),
    ("bridge_reload_type", BRIDGE),
];

/// The fate of an option of this name; those of plugins have any name behind a prefix.
pub(super) fn fate(name: &str) -> Option<Fate> {
    if name.starts_with("plugin_opt_") || name.starts_with("auth_opt_") {
        return Some(PLUGIN);
    }
    OPTIONS.iter().find(|(known, _)| *known == name).map(|(_, fate)| *fate)
}
