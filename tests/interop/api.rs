//! What Mosquitto 2.1 has beside MQTT: its HTTP API, `$CONTROL/broker/v1`, and plugins for single listeners.

use serde_json::{Value, json};

use crate::clients::{free_port, python};
use crate::options::FILES;
use crate::site::Site;
use crate::stand_in::{serve, shell, tool};

/// The status and body that curl was answered with.
fn curl(site: &Site, line: &str) -> (String, String) {
    let (code, said) =
        tool(site, &format!("curl --silent --show-error --max-time 10 --write-out '\\n%{{http_code}}' {line}"));
    assert_eq!(code, Some(0), "{line}: {said}");
    let (body, status) = said.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

#[test]
fn the_http_api_tells_what_the_acl_lets_whoever_asks_read() {
    let site = Site::empty();
    let (mqtt, http, https) = (free_port(), free_port(), free_port());
    shell(&site, FILES);
    shell(
        &site,
        "mosquitto_passwd -c -b passwd alice a; mosquitto_passwd -b passwd bob b
         printf 'user alice\\ntopic readwrite #\\nuser bob\\ntopic read /api/v1/version\\ntopic read /#\\ntopic deny /sub/#\\n' > acl
         mkdir -p www/sub; echo front > www/index.html; echo 'one file' > 'www/sub/a b.txt'; echo secret > outside
         mkdir www/linked; ln -s ../outside www/link; ln -s ../../outside www/linked/index.html; chmod -R a+rX .",
    );
    site.write(
        "m.conf",
        &format!(
            "user root\npassword_file passwd\nacl_file acl\nlistener {mqtt} 127.0.0.1\nlistener {http} 127.0.0.1\nprotocol http_api\nhttp_dir www\n\
             listener {https} 127.0.0.1\nprotocol http_api\ncertfile server.crt\nkeyfile server.key\nlistener_allow_anonymous true\n"
        ),
    );
    let broker = serve(&site, &[mqtt, http]);
    let alice = |path: &str| curl(&site, &format!("--user alice:a --path-as-is 'http://127.0.0.1:{http}{path}'"));
    assert_eq!(tool(&site, &format!("mosquitto_pub -p {mqtt} -u alice -P a -t kept -m m -r -q 1")).0, Some(0));
    assert_eq!(alice("/api/v1/version"), ("200".to_owned(), env!("CARGO_PKG_VERSION").to_owned()));
    let (status, tree) = alice("/api/v1/systree");
    let tree: Value = serde_json::from_str(&tree).unwrap();
    assert_eq!((status.as_str(), &tree["$SYS/broker/publish/messages/received"]), ("200", &json!(1)));
    for count in ["clients/maximum", "uptime", "connections/socket/count", "store/messages/bytes"] {
        assert!(tree[format!("$SYS/broker/{count}")].is_u64(), "{count}: {tree}");
    }
    assert!(tree.get("$SYS/broker/version").is_none(), "{tree}");
    let listeners: Value = serde_json::from_str(&alice("/api/v1/listeners").1).unwrap();
    let (none, all) = (json!(false), json!(true));
    let listener = |port: u16, protocol: &str, tls: &Value, anonymous: &Value| json!({ "port": port, "protocol": protocol, "tls": tls, "mtls": false, "allow_anonymous": anonymous });
    let expected = [
        listener(mqtt, "mqtt", &none, &none),
        listener(http, "httpapi", &none, &none),
        listener(https, "httpapi", &all, &all),
    ];
    assert_eq!(listeners, json!({ "listeners": expected }));
    // Files, and nothing beside them.
    assert_eq!(alice("/"), ("200".to_owned(), "front\n".to_owned()));
    assert_eq!(alice("/sub/a%20b.txt"), ("200".to_owned(), "one file\n".to_owned()));
    for path in [
        "/link",
        "/linked/",
        "/sub",
        "/../outside",
        "/%2e%2e/outside",
        "/sub/..%2f..%2foutside",
        "//sub/a%20b.txt",
        "/nothing",
        "/API/v1/version",
    ] {
        assert_eq!(alice(path), ("404".to_owned(), "Not found.\n".to_owned()), "{path}");
    }
    let url = format!("http://127.0.0.1:{http}/api/v1");
    assert_eq!(curl(&site, &format!("--user alice:a --request POST {url}/version")).0, "405");
    // Who may not.
    let refused = ("401".to_owned(), "Not authorised\n".to_owned());
    assert_eq!(curl(&site, &format!("--user bob:b {url}/version")).0, "200");
    // However it is written, it is one path.
    for path in ["sub/a%20b.txt", "%73ub/a%20b.txt"] {
        assert_eq!(curl(&site, &format!("--user bob:b http://127.0.0.1:{http}/{path}")), refused, "{path}");
    }
    assert_eq!(curl(&site, &format!("{url}/version")), refused);
    assert_eq!(curl(&site, &format!("--oauth2-bearer x {url}/version")), refused);
    assert_eq!(curl(&site, &format!("--user bob:wrong {url}/version")), refused);
    broker.wait_for("refused \"/api/v1/version\" by HTTP: ");
    // Over TLS, where that listener lets anybody in: no line of the ACL is for him.
    let secure = format!("--cacert ca.crt https://localhost:{https}/api/v1/version");
    assert_eq!(curl(&site, &secure), refused);
    shell(&site, "printf 'topic read /api/#\\n' | cat - acl > acl.new; cat acl.new > acl");
    broker.signal("HUP");
    crate::site::eventually("the new ACL", || curl(&site, &secure).0 == "200");
    // What is no HTTP.
    assert_ne!(tool(&site, &format!("mosquitto_pub -p {http} -u alice -P a -t t -m m")).0, Some(0));
    broker.wait_for("bare MQTT on the HTTP port");
}

#[test]
fn a_websocket_listener_serves_files_beside() {
    let site = Site::empty();
    let port = free_port();
    shell(&site, "mkdir www; echo page > www/index.html; chmod -R a+rX .");
    site.write(
        "m.conf",
        &format!("user root\nallow_anonymous true\nlistener {port} 127.0.0.1\nprotocol websockets\nhttp_dir www\n"),
    );
    let broker = serve(&site, &[port]);
    assert_eq!(curl(&site, &format!("http://127.0.0.1:{port}/")), ("200".to_owned(), "page\n".to_owned()));
    assert_eq!(curl(&site, &format!("http://127.0.0.1:{port}/api/v1/version")).0, "404");
    let script = "
import sys, paho.mqtt.client as mqtt
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, transport='websockets')
client.on_connect = lambda client, userdata, flags, reason, properties: client.subscribe('t', 1)
client.on_subscribe = lambda client, userdata, mid, reasons, properties: client.publish('t', 'over', 1)
client.on_message = lambda client, userdata, message: (print(message.payload.decode()), client.disconnect())
client.connect('127.0.0.1', int(sys.argv[1]))
client.loop_forever()
";
    let (code, said) = crate::site::run_with(python().args(["-c", script, &port.to_string()]), b"");
    assert_eq!((code, said.trim()), (Some(0), "over"), "{}", broker.log());
    // What is no folder is said at once.
    site.write("m.conf", &format!("listener {port}\nprotocol websockets\nhttp_dir no-such\n"));
    let (code, said) = tool(&site, &format!("{} mosquitto -c m.conf --test-config", env!("CARGO_BIN_EXE_lockgate")));
    assert!(code == Some(3) && said.contains("http_dir no-such: there is no such folder"), "{said}");
}

#[test]
fn the_control_api_lists_listeners_and_plugins_as_mosquitto_s() {
    let site = Site::empty();
    let (mqtt, websockets) = (free_port(), free_port());
    shell(&site, "printf 'topic readwrite #\\ntopic readwrite $CONTROL/#\\n' > acl");
    let configure = |enabled: bool| {
        site.write(
            "m.conf",
            &format!(
                "user root\nenable_control_api {enabled}\nallow_anonymous true\nglobal_plugin /usr/lib/mosquitto_acl_file.so\nplugin_opt_acl_file acl\n\
                 listener {mqtt} 127.0.0.1\nlistener {websockets}\nprotocol websockets\nlistener 0 here.sock\n"
            ),
        );
    };
    configure(true);
    let broker = serve(&site, &[mqtt, websockets]);
    let script = "
import sys, paho.mqtt.client as mqtt
port, topic, question = sys.argv[1:]
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.on_connect = lambda client, userdata, flags, reason, properties: client.subscribe(topic + '/response')
client.on_subscribe = lambda client, userdata, mid, reasons, properties: client.publish(topic, question, 1)
client.on_message = lambda client, userdata, message: (print(message.payload.decode()), client.disconnect())
client.connect('127.0.0.1', int(port))
client.loop_forever()
";
    let ask = |topic: &str, question: &str| -> Value {
        let (_, said) = crate::site::run_with(python().args(["-c", script, &mqtt.to_string(), topic, question]), b"");
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}\n{}", broker.log()))
    };
    let endpoint = "$CONTROL/broker/v1";
    let answer =
        ask(endpoint, r#"{"commands":[{"command":"listListeners","correlationData":"x"},{"command":"listPlugins"}]}"#);
    let listeners = json!([
        { "port": mqtt, "protocol": "mqtt", "bind-address": "127.0.0.1", "tls": false },
        { "port": websockets, "protocol": "mqtt+websockets", "tls": false },
        { "port": 0, "protocol": "mqtt", "socket-path": "here.sock", "tls": false },
    ]);
    let plugins = json!([{ "name": "acl-file", "control-endpoints": [] }]);
    let expected = json!({ "responses": [
        { "command": "listListeners", "correlationData": "x", "data": { "listeners": listeners } },
        { "command": "listPlugins", "data": { "plugins": plugins } },
    ] });
    assert_eq!(answer, expected);
    for (payload, command, error) in [
        ("not valid json", "Unknown command", "Payload not valid JSON"),
        ("{}", "Unknown command", "Invalid/missing commands"),
        (r#"{"commands":["command"]}"#, "Unknown command", "Command not an object"),
        (r#"{"commands":[{}]}"#, "Unknown command", "Missing command"),
        (r#"{"commands":[{"command":"unknown command"}]}"#, "unknown command", "Unknown command"),
        (
            r#"{"commands":[{"command":"listListeners","correlationData":true}]}"#,
            "listListeners",
            "Invalid correlationData data type.",
        ),
    ] {
        assert_eq!(ask(endpoint, payload), json!({ "responses": [{ "command": command, "error": error }] }));
    }
    assert_eq!(ask("$CONTROL/missing/v1", "{}"), json!({ "error": "endpoint not available" }));
    // Off again, it is there for nobody, and nobody else sees what is asked.
    configure(false);
    broker.signal("HUP");
    broker.wait_for("reloaded");
    assert_eq!(ask(endpoint, "{}"), json!({ "error": "endpoint not available" }));
    let script = format!(
        "timeout 2 mosquitto_sub -p {mqtt} -t '$CONTROL/#' -C 1 -F '%t %p' & sleep 0.5
         mosquitto_pub -p {mqtt} -q 1 -t '{endpoint}' -m secret; wait"
    );
    assert_eq!(tool(&site, &script).1.trim(), "");
}

#[test]
fn plugins_that_are_loaded_hold_for_the_listeners_that_use_them() {
    let site = Site::empty();
    let (checked, open) = (free_port(), free_port());
    shell(&site, "mosquitto_passwd -c -b near.pw alice a; printf 'user alice\\ntopic readwrite mine/#\\n' > near.acl");
    site.write(
        "m.conf",
        &format!(
            "user root\nplugin_load pw /usr/lib/mosquitto_password_file.so\nplugin_opt_password_file near.pw\n\
             plugin_load acl /usr/lib/mosquitto_acl_file.so\nplugin_opt_acl_file near.acl\nplugin /usr/lib/mosquitto_sparkplug_aware.so\n\
             listener {checked} 127.0.0.1\nplugin_use pw\nplugin_use acl\n\
             listener {open} 127.0.0.1\nlistener_allow_anonymous true\n"
        ),
    );
    let broker = serve(&site, &[checked, open]);
    let publish = |port: u16, more: &str| tool(&site, &format!("mosquitto_pub -p {port} -V 5 -q 1 {more}"));
    assert_eq!(publish(checked, "-u alice -P a -t mine/x -m m"), (Some(0), String::new()));
    assert!(publish(checked, "-u alice -P a -t other -m m").1.contains("ot authori"));
    assert!(publish(checked, "-u alice -P b -t mine/x -m m").1.to_lowercase().contains("bad user"));
    assert_ne!(publish(checked, "-t mine/x -m m").0, Some(0));
    assert_eq!(publish(open, "-t other -m m"), (Some(0), String::new()));
    // Births are there for a host application that comes late, as they were sent.
    assert_eq!(publish(open, "-t spBv1.0/G/NBIRTH/E -m node").0, Some(0));
    assert_eq!(publish(open, "-t spBv1.0/G/DBIRTH/E/D -m device").0, Some(0));
    assert_eq!(publish(open, "-t spBv1.0/G/NDATA/E -m data").0, Some(0));
    let births = tool(
        &site,
        &format!("timeout 10 mosquitto_sub -p {open} -t '$sparkplug/certificates/#' -C 2 -F '%r %t %p' | sort"),
    );
    assert_eq!(
        births.1,
        "1 $sparkplug/certificates/spBv1.0/G/DBIRTH/E/D device\n1 $sparkplug/certificates/spBv1.0/G/NBIRTH/E node\n",
        "{}",
        broker.log()
    );
}
