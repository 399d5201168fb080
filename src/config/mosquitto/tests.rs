use std::path::{Path, PathBuf};

use super::*;
use crate::auth::IdentityRule;
use crate::config::{ClientCerts, ListenerAddress, LogDestination, LogStyle, Settings, Transport};
use crate::store::Durability;
use crate::types::QoS;

fn read(text: &str) -> Result<Read, Wrong> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.conf");
    std::fs::write(&file, text).unwrap();
    load(&CommandLine { file: Some(file), ..CommandLine::default() })
}

fn settings(text: &str) -> Settings {
    read(text).unwrap_or_else(|error| panic!("{text}: {error}")).settings
}

fn wrong(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn a_typical_guide_s_configuration_means_what_it_means_there() {
    let settings = settings(
        "# comment\nlistener 1883\nlistener 8883 192.0.2.7\ncafile /c/ca.crt\ncertfile /c/s.crt\nkeyfile /c/s.key\nrequire_certificate true\n\
         allow_anonymous false\npassword_file /c/passwd\nlog_dest file /l/m.log\nlog_type error\nlog_type warning\n",
    );
    assert_eq!(settings.listeners[0].address, ListenerAddress::All(1883));
    assert_eq!(settings.listeners[0].transport, Transport::Tcp);
    assert_eq!(settings.listeners[1].address, ListenerAddress::Ip("192.0.2.7".parse().unwrap(), 8883));
    let Transport::Tls(tls) = &settings.listeners[1].transport else { panic!("TLS") };
    assert_eq!(tls.client_certs, ClientCerts::Required);
    // A certificate opens the door; who comes is the user name's to say.
    assert!(settings.listeners.iter().all(|listener| listener.rules.identity == IdentityRule::UserName));
    assert!(settings.listeners.iter().all(|listener| !listener.rules.allow_anonymous && listener.rules.foreign));
    assert_eq!(settings.passwords, Some(PathBuf::from("/c/passwd")));
    assert_eq!(settings.log.destinations, [LogDestination::File(PathBuf::from("/l/m.log"))]);
    assert!(settings.log.level.starts_with("warn,"));
    assert_eq!(settings.durability, Durability::Off);
    // Mosquitto's own defaults.
    let limits = &settings.limits;
    assert_eq!((limits.packet_size_max, limits.receive_maximum), (2_000_000, 20));
    assert_eq!(settings.listeners[0].entrance.topic_alias_max, 10);
    assert_eq!((limits.inflight_max, limits.queued_messages_max, limits.as_mosquitto), (20, 1000, true));
}

#[test]
fn without_a_listener_it_serves_this_machine_alone_and_anybody() {
    let read = load(&CommandLine::default()).unwrap();
    assert!(read.local_only);
    assert_eq!(read.settings.listeners[0].address, ListenerAddress::Loopback(1883));
    assert!(read.settings.listeners[0].rules.allow_anonymous);
    let read = load(&CommandLine { ports: vec![1999, 2000], ..CommandLine::default() }).unwrap();
    assert!(read.local_only && read.settings.listeners[1].address == ListenerAddress::Loopback(2000));
    assert!(!settings("port 1884\n").listeners[0].rules.allow_anonymous);
}

#[test]
fn options_are_for_the_listener_before_them() {
    let settings = settings(
        "max_packet_size 0x7CF\nmax_inflight_messages 0\nlistener 0 /run/m.sock\nlistener 9001 # web\nprotocol websockets\nsocket_domain ipv4\n\
         websockets_origin https://a.example\nlistener 1884 127.0.0.1\nmax_connections -1\nmax_qos 1\nuse_username_as_clientid true\n\
         accept_protocol_versions 4,5\nallow_zero_length_clientid false\nauto_id_prefix me-\n",
    );
    assert_eq!(settings.limits.packet_size_max, 0x7CF);
    assert_eq!(settings.limits.inflight_max, u16::MAX);
    let [unix, web, last] = settings.listeners.as_slice() else { panic!("three") };
    assert_eq!(unix.transport, Transport::Unix);
    assert_eq!(web.address, ListenerAddress::Ip("0.0.0.0".parse().unwrap(), 9001));
    assert_eq!(web.websocket.as_ref().unwrap().origins, ["https://a.example"]);
    assert_eq!((last.versions, last.client_ids.from_user_name), ([false, true, true], true));
    assert!(!last.client_ids.may_be_empty && last.client_ids.prefix == "me-");
    assert_eq!((web.entrance.qos_max, last.entrance.qos_max), (QoS::ExactlyOnce, QoS::AtLeastOnce));
    assert_eq!((last.entrance.topic_alias_max, last.entrance.client_topic_alias_max), (10, 10));
}

#[test]
fn with_per_listener_settings_each_has_its_own() {
    let settings = settings(
        "per_listener_settings true\nlistener 1\nallow_anonymous true\nlistener 2\npassword_file /p\nallow_anonymous false\n",
    );
    assert!(settings.listeners[0].rules.allow_anonymous && !settings.listeners[1].rules.allow_anonymous);
    assert!(wrong("allow_anonymous true\nper_listener_settings true\n").contains("must be set before"));
    assert!(wrong("per_listener_settings true\nallow_anonymous true\n").contains("needs a listener before it"));
    let listeners = &settings.listeners;
    assert_eq!(listeners[0].files.as_ref().unwrap().passwords, None);
    assert_eq!(listeners[1].files.as_ref().unwrap().passwords, Some(PathBuf::from("/p")));
    assert_ne!(listeners[0].entrance.realm, listeners[1].entrance.realm);
    assert!(listeners[0].rules.unchecked && !listeners[1].rules.unchecked);
    assert_eq!(settings.password_files().collect::<Vec<_>>(), [Path::new("/p")]);
}

#[test]
fn what_mosquitto_2_1_has_beside_is_done_too() {
    let read = settings(
        "queue_qos0_messages true\nupgrade_outgoing_qos true\ncheck_retain_source 1\nmax_inflight_bytes 7\nclientid_prefixes dev-\n\
         log_facility 5\nlog_dest topic\nlog_dest syslog\nlog_type subscribe\nlog_type error\n\
         listener 1\nmount_point a/b/\nmax_topic_alias_broker 3\ncapath /ca\ncertfile /c\nkeyfile /k\nrequire_certificate true\nciphers HIGH:!AES128\n",
    );
    let limits = &read.limits;
    assert!(limits.queues_qos_0 && limits.upgrades_qos && limits.checks_retained_source);
    assert_eq!(limits.inflight_bytes_max, 7);
    let [listener] = read.listeners.as_slice() else { panic!("one") };
    assert_eq!((&*listener.entrance.mount_point, listener.entrance.client_topic_alias_max), ("a/b/", 3));
    assert_eq!(listener.client_ids.required_prefix.as_deref(), Some("dev-"));
    let Transport::Tls(tls) = &listener.transport else { panic!("TLS") };
    assert_eq!((tls.client_ca.to_str(), tls.cipher_suites.len()), (Some("/ca"), 3 + 4));
    assert_eq!(read.log.destinations, [LogDestination::Topic, LogDestination::Syslog]);
    assert_eq!(read.log.facility, Some(5));
    assert_eq!(read.log.level, "error,lockgate::subscribe=debug,lockgate::unsubscribe=off");
    let read = settings(
        "plugin /usr/lib/mosquitto_password_file.so\nplugin_opt_password_file /p\nglobal_plugin /x/mosquitto_acl_file.so\nplugin_opt_acl_file /a\n\
         listener 1\nplugin /usr/lib/mosquitto_persist_sqlite.so\nplugin_opt_db_file /var/db/m.sqlite3\nplugin_opt_sync full\n",
    );
    assert_eq!((read.passwords, read.acl), (Some("/p".into()), Some("/a".into())));
    assert_eq!((read.durability, read.data), (Durability::Fsync, "/var/db/lockgate".into()));
    let location = Some("/env".into());
    let read = load(&CommandLine { location, ..CommandLine::default() }).unwrap();
    assert!(!read.settings.data.starts_with("/env"));
    for (text, what) in [
        ("plugin /usr/lib/mosquitto_dynamic_security.so", "dynamic security is not there yet"),
        ("plugin /opt/other.so", "no others are loaded"),
        ("plugin_load a /x/other.so", "no others are loaded"),
        ("plugin_load a", "plugin_load needs a name and the plugin's file."),
        ("plugin_load a x/acl_file.so\nplugin_load a x/acl_file.so", "There is a plugin a already."),
        ("plugin_load a x/acl_file.so\nplugin_use a", "needs a listener before it"),
        ("listener 1\nplugin_use a", "No plugin_load before this line names a plugin a."),
        ("plugin_load a x/acl_file.so\nlistener 1\nplugin_use a", "The plugin a has no acl-file: name its file."),
        (
            "acl_file /b\nplugin_load a x/acl_file.so\nplugin_opt_acl_file /a\nlistener 1\nplugin_use a",
            "a listener goes by one file of a kind here: /a of the plugin a, or /b.",
        ),
        ("listener 0 /s\nprotocol http_api", "go with a port"),
        ("http_dir /", "needs a listener before it"),
        ("plugin a/acl_file.so\nplugin b/acl_file.so", "one plugin of a kind is for all listeners here"),
        ("plugin_opt_x y", "no others are loaded"),
        (
            "plugin mosquitto_acl_file.so\nplugin_opt_password_file /x",
            "Unknown configuration variable 'plugin_opt_password_file'",
        ),
        ("log_facility 8", "Invalid log_facility value (8)."),
        ("log_timestamp_format %Y%", "Invalid log_timestamp_format value (%Y%)"),
        ("mount_point a/", "needs a listener before it"),
        ("listener 1\nmount_point a/#/", "Does it contain a wildcard character?"),
        ("listener 1\ncertfile /c\nkeyfile /k\nciphers RC4\n", "none of these is offered here; there are ECDHE-ECDSA-"),
    ] {
        assert!(wrong(text).contains(what), "{text}: {}", wrong(text));
    }
    // -p is for where no listener is named, and what says what holds anyway names none.
    let ports = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.conf");
        std::fs::write(&file, text).unwrap();
        load(&CommandLine { file: Some(file), ports: vec![1999], ..CommandLine::default() }).unwrap()
    };
    let read = ports("listener 1884\n");
    assert_eq!(read.settings.listeners.len(), 1);
    assert!(read.notices[0].contains("-p has no effect"));
    let read = ports("protocol mqtt\nmax_connections -1\n");
    assert!(read.local_only && read.settings.listeners[0].address == ListenerAddress::Loopback(1999));
}

#[test]
fn errors_say_what_and_where_in_mosquitto_s_form() {
    for (text, what) in [
        ("foo bar", "Unknown configuration variable 'foo'"),
        ("allow_anonymous yes", "Invalid allow_anonymous value (yes)."),
        ("allow_anonymous", "Empty allow_anonymous value in configuration."),
        ("listener 0", "A listener with port 0 must provide a Unix socket path."),
        ("listener 70000", "Invalid port value (70000)."),
        ("max_packet_size 10", "Invalid max_packet_size value (10)."),
        ("max_keepalive abc", "Invalid max_keepalive value (abc)."),
        ("log_dest foo", "Invalid log_dest value (foo)."),
        ("log_type foo", "Invalid log_type value (foo)."),
        ("listener 1\nprotocol foo", "Invalid protocol value (foo)."),
        ("listener 1\nmax_qos 3", "max_qos must be between 0 and 2 inclusive."),
        ("listener 1\ntls_version tlsv1.1", "Unsupported tls_version \"tlsv1.1\"."),
        ("persistent_client_expiration 0h", "Invalid persistent_client_expiration duration in configuration."),
        ("pid_file /a\npid_file /b", "Duplicate pid_file value in configuration."),
        ("include_dir /nonexistent", "Unable to open include_dir '/nonexistent'"),
        ("cafile /a", "needs a listener before it"),
        ("connection b\naddress x", "bridges are not there yet"),
        ("psk_file /x", "rustls has no pre-shared keys"),
    ] {
        let error = read(&format!("# first\n{text}\n")).unwrap_err();
        let lines = text.lines().count() + 1;
        let lines = if text.starts_with("connection") { 2 } else { lines };
        assert!(error.what.contains(what), "{text}: {error}");
        assert!(error.places[0].ends_with(&format!("m.conf:{lines}")), "{text}: {error}");
        assert!(error.to_string().starts_with("Error: ") && error.to_string().contains("\nError found at "), "{error}");
    }
    assert!(wrong("listener 1\ncertfile /a\n").contains("Both certfile and keyfile"));
    assert!(wrong("listener 1\ncertfile /a\nkeyfile /b\nrequire_certificate true\n").contains("needs cafile"));
    assert!(load(&CommandLine { file: Some("/nonexistent.conf".into()), ..CommandLine::default() }).is_err());
}

#[test]
fn where_mosquitto_is_cruel_this_is_lenient_and_says_so() {
    let read = read("\tport\t1884\n  # indented\nset_tcp_nodelay true\nretry_interval 20\r\n").unwrap();
    assert_eq!(read.settings.listeners[0].address, ListenerAddress::All(1884));
    let has =
        |what: &str| assert!(read.notices.iter().any(|notice| notice.contains(what)), "{what}: {:?}", read.notices);
    has("m.conf:1: a tab");
    has("m.conf:2: an indented comment");
    has("set_tcp_nodelay has no effect here");
    has("retry_interval has no effect here");
}

#[test]
fn included_files_come_in_their_order_and_leave_the_listener_alone() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("conf.d")).unwrap();
    write("conf.d/b.conf", "max_queued_messages 2\n");
    write("conf.d/A.conf", "max_queued_messages 1\nmax_keepalive 60\n");
    write("conf.d/README", "nonsense\n");
    let main = format!("listener 1\ninclude_dir {}\nmax_connections 7\n", folder.path().join("conf.d").display());
    write("m.conf", &main);
    let file = folder.path().join("m.conf");
    let load = || load(&CommandLine { file: Some(file.clone()), ..CommandLine::default() });
    let settings = load().unwrap().settings;
    assert_eq!((settings.limits.queued_messages_max, settings.limits.keep_alive_secs_max), (2, 60));
    assert_eq!((settings.listeners.len(), settings.listeners[0].connections_max), (1, 7));
    write("conf.d/c.conf", "\nfoo\n");
    let error = load().unwrap_err();
    assert!(error.places[0].ends_with("c.conf:2") && error.places[1].ends_with("m.conf:2"), "{error}");
}

#[test]
fn what_becomes_of_each_option_is_known_once_and_written_down() {
    let names: std::collections::BTreeSet<&str> = OPTIONS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), OPTIONS.len());
    // Nothing that is said to be done is left to nobody.
    for (name, fate) in OPTIONS {
        if *fate == Fate::Same {
            for before in ["", "listener 1\n"] {
                drop(read(&format!("{before}{name} 1\n")));
            }
        }
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/mosquitto.md");
    let page = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    for (name, fate) in OPTIONS {
        let row = match fate {
            Fate::Same => format!("| `{name}` | same |"),
            Fate::Idle(why) => format!("| `{name}` | no effect | {why} |"),
            Fate::Refused(instead) => format!("| `{name}` | refused | {instead} |"),
            Fate::Partly(what) => format!("| `{name}` | some | {what} |"),
            Fate::Later(why) => format!("| `{name}` | not there | {why} |"),
        };
        assert!(page.contains(&row), "docs/mosquitto.md lacks: {row}");
    }
    let style = LogStyle::Mosquitto { timestamp: false, format: None, connections: false };
    assert_eq!(settings("log_timestamp false\nconnection_messages false\n").log.style, style);
}
