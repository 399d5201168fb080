//! What options of mosquitto.conf do, with the real binary and Mosquitto's own clients.

use std::process::Command;

use crate::clients::free_port;
use crate::site::{Site, eventually, run_with};
use crate::stand_in::{serve, shell, tool};

/// A CA, a server certificate for localhost and a client's, as openssl makes them.
pub(crate) const FILES: &str = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=ca 2>/dev/null
    printf 'subjectAltName=DNS:localhost\\n' > names
    openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost 2>/dev/null
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile names -out server.crt -days 30 2>/dev/null
    openssl req -newkey rsa:2048 -nodes -keyout client.key -out client.csr -subj /CN=client 2>/dev/null
    openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -extfile names -out client.crt -days 30 2>/dev/null";

#[test]
fn listeners_have_passwords_acls_and_mount_points_of_their_own() {
    let site = Site::empty();
    let (near, far) = (free_port(), free_port());
    shell(
        &site,
        "mosquitto_passwd -c -b near.pw alice one; mosquitto_passwd -b near.pw bob b; mosquitto_passwd -c -b far.pw alice two
         mosquitto_passwd -b far.pw bob b
         printf 'user alice\\ntopic read site1/#\\n' > far.acl",
    );
    site.write(
        "m.conf",
        &format!(
            "user root\nper_listener_settings true\nlistener {near} 127.0.0.1\nmount_point site1/\npassword_file near.pw\n\
             listener {far} 127.0.0.1\npassword_file far.pw\nacl_file far.acl\nmax_qos 1\n"
        ),
    );
    let broker = serve(&site, &[near, far]);
    // The same name has another password there, and other rights; it sees what the other does not.
    let publish = |port: u16, secret: &str, topic: &str| {
        tool(&site, &format!("mosquitto_pub -p {port} -u alice -P {secret} -t {topic} -m m -q 1 -V 5"))
    };
    assert!(publish(near, "two", "t").1.to_lowercase().contains("bad user"));
    let script = format!(
        "timeout 10 mosquitto_sub -p {far} -u alice -P two -t '#' -C 1 -F '%t %p' & sleep 0.5
         mosquitto_pub -p {near} -u alice -P one -t room/temp -m 21; wait"
    );
    assert_eq!(tool(&site, &script).1.trim(), "site1/room/temp 21");
    assert!(publish(far, "two", "site1/t").1.contains("ot authori"));
    let script = format!(
        "timeout 10 mosquitto_sub -p {near} -u alice -P one -t '#' -C 1 -F '%t %p' & sleep 0.5
         mosquitto_pub -p {near} -u alice -P one -t mine -m 22; wait"
    );
    assert_eq!(tool(&site, &script).1.trim(), "mine 22");
    let (_, said) = tool(&site, &format!("mosquitto_sub -p {far} -u alice -P two -t site1/x -q 2 -d -E"));
    assert!(said.contains("Subscribed (mid: 1): 1"), "{said}");
    // Bob goes from one of the two files.
    let mut subs: Vec<_> = [near, far]
        .into_iter()
        .map(|port| {
            let line = format!("exec mosquitto_sub -p {port} -u bob -P b -i bob{port} -t never");
            Command::new("sh").args(["-c", &line]).spawn().unwrap()
        })
        .collect();
    for port in [near, far] {
        broker.wait_for(&format!(" as bob{port} (p2"));
    }
    shell(&site, "mosquitto_passwd -D near.pw bob");
    broker.signal("HUP");
    broker.wait_for(&format!("Client bob{near} been disconnected by administrative action."));
    assert!(!broker.log().contains(&format!("Client bob{far} ")), "{}", broker.log());
    for sub in &mut subs {
        sub.kill().unwrap();
        sub.wait().unwrap();
    }
}

#[test]
fn ciphers_cas_in_a_folder_and_a_key_log_are_taken() {
    let site = Site::empty();
    shell(&site, FILES);
    shell(&site, "mkdir cas; cp ca.crt cas/; printf nonsense > cas/README");
    let port = free_port();
    let configure = |ciphers: &str| {
        site.write(
            "m.conf",
            &format!(
                "user root\nallow_anonymous true\nlistener {port} 127.0.0.1\ncapath cas\ncertfile server.crt\nkeyfile server.key\n\
                 require_certificate true\nciphers {ciphers}\n"
            ),
        );
    };
    configure("ECDHE-RSA-CHACHA20-POLY1305:AES256-SHA");
    // A folder of CAs needs them under their hashes.
    let start = "\"$LOCKGATE\" mosquitto -c m.conf --tls-keylog keys";
    let run = |line: &str| {
        let binary = env!("CARGO_BIN_EXE_lockgate");
        run_with(Command::new("sh").args(["-c", line]).env("LOCKGATE", binary).current_dir(site.path("")), b"")
    };
    assert!(run(start).1.contains("run `openssl rehash cas`"));
    shell(&site, "openssl rehash cas");
    let mut command = crate::site::lockgate();
    command.args(["mosquitto", "-c", "m.conf", "--tls-keylog", "keys"]).current_dir(site.path(""));
    let mut broker = crate::site::Broker::start(command, site.path(""));
    broker.wait_for("who has it reads their traffic");
    eventually("the listener", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let (code, said) = tool(
        &site,
        &format!(
            "mosquitto_pub -h localhost -p {port} --cafile ca.crt --cert client.crt --key client.key -t t -m m -q 1"
        ),
    );
    assert_eq!(code, Some(0), "{said}");
    assert_ne!(tool(&site, &format!("mosquitto_pub -h localhost -p {port} --cafile ca.crt -t t -m m -q 1")).0, Some(0));
    let hello = |cipher: &str| {
        let line = format!(
            "openssl s_client -connect localhost:{port} -CAfile ca.crt -cert client.crt -key client.key -tls1_2 -cipher {cipher} < /dev/null 2>&1"
        );
        tool(&site, &line).1
    };
    assert!(hello("ECDHE-RSA-CHACHA20-POLY1305").contains("Cipher is ECDHE-RSA-CHACHA20-POLY1305"));
    assert!(hello("ECDHE-RSA-AES256-GCM-SHA384").contains("alert handshake failure"));
    let keys = site.text("keys");
    assert!(keys.contains("CLIENT_TRAFFIC_SECRET_0 ") && keys.contains("CLIENT_RANDOM "), "{keys}");
    assert_eq!(shell(&site, "stat -c %a keys").trim(), "600");
    broker.signal("TERM");
    broker.wait();
    // A file that others can read is no place for keys.
    shell(&site, "chmod 644 keys");
    let (code, said) = run(start);
    assert!(code == Some(1) && said.contains("a file of this user's that nobody else may read"), "{said}");
    configure("AES256-SHA");
    let (code, said) = run("\"$LOCKGATE\" mosquitto -c m.conf");
    assert!(
        code == Some(3) && said.contains("ciphers AES256-SHA: none of these is offered here; there are ECDHE-"),
        "{said}"
    );
}

#[test]
fn the_log_goes_to_topics_too_with_a_line_for_each_subscription() {
    let site = Site::empty();
    let port = free_port();
    site.write(
        "m.conf",
        &format!(
            "user root\nallow_anonymous true\nlistener {port} 127.0.0.1\nlog_dest topic\nlog_dest stderr\nlog_type all\n\
             log_timestamp_format %Y-%m-%dT%H:%M:%S\nsys_interval 1\nclientid_prefixes dev-\n"
        ),
    );
    let broker = serve(&site, &[port]);
    let script = format!(
        "mosquitto_sub -p {port} -i dev-log -t '$SYS/broker/log/#' -W 3 -F '%t %p' > lines & sub=$!; sleep 0.7
         timeout 1 mosquitto_sub -p {port} -i dev-sub -t a/+ -q 1 > /dev/null; wait $sub"
    );
    tool(&site, &script);
    let lines = site.text("lines");
    assert!(
        lines.contains("$SYS/broker/log/N ") && lines.contains(": New client connected from 127.0.0.1:"),
        "{lines}"
    );
    assert!(lines.contains("$SYS/broker/log/M/subscribe ") && lines.contains(": dev-sub 1 a/+"), "{lines}");
    // The year, in this place's time.
    let year = shell(&site, "date +%Y");
    assert!(broker.log().lines().any(|line| line.starts_with(&format!("{}-", year.trim()))), "{}", broker.log());
    // Who is called otherwise is not let in.
    assert!(tool(&site, &format!("mosquitto_pub -p {port} -i other -t t -m m")).1.contains("ot authori"));
    let keep = format!(
        "mosquitto_sub -p {port} -i dev-kept -c -q 1 -t a/b -t a/# -E; mosquitto_pub -p {port} -i dev-p -t a/b -m x -q 1 -r"
    );
    assert_eq!(tool(&site, &keep).0, Some(0));
    broker.signal("USR2");
    eventually("the tree", || broker.log().contains("\n  a\n    # (dev-kept, 1)\n    b (dev-kept, 1)"));
    let read = |topic: &str| {
        tool(&site, &format!("timeout 10 mosquitto_sub -p {port} -i dev-r -t '{topic}' -C 1")).1.trim().to_owned()
    };
    // What is retained, what the broker says of itself among it, and the one that waits.
    let count = |topic: &str| read(topic).parse::<u64>().unwrap();
    eventually("what is retained and what waits", || {
        count("$SYS/broker/store/messages/count") == count("$SYS/broker/retained messages/count") + 1
    });
    assert!(count("$SYS/broker/store/messages/bytes") > 100);
    assert!(read("$SYS/broker/messages/received").parse::<u64>().unwrap() > 10);
    assert!(read("$SYS/broker/load/sockets/15min").parse::<f64>().unwrap() > 0.0);
    assert_eq!(read("$SYS/broker/clients/expired"), "0");
}

#[test]
fn what_waits_at_qos_0_outlives_a_kill_where_that_is_asked_for() {
    let site = Site::empty();
    let port = free_port();
    site.write(
        "m.conf",
        &format!(
            "user root\nallow_anonymous true\nlistener {port} 127.0.0.1\npersistence true\npersistence_location .\nqueue_qos0_messages true\n"
        ),
    );
    let mut broker = serve(&site, &[port]);
    let sub = format!("mosquitto_sub -p {port} -i kept -c -t t -q 1");
    let script = format!("{sub} -E; mosquitto_pub -p {port} -t t -m zero; mosquitto_pub -p {port} -t t -m one -q 1");
    assert_eq!(tool(&site, &script).0, Some(0));
    broker.signal("USR1");
    broker.wait_for("asked to save: all is on the disk");
    broker.signal("KILL");
    broker.wait();
    let _broker = serve(&site, &[port]);
    assert_eq!(tool(&site, &format!("timeout 10 {sub} -C 2")).1, "zero\none\n");
    assert_eq!(tool(&site, &format!("timeout 1 {sub} -C 1")).0, Some(124));
}

#[test]
fn an_interface_alone_is_listened_on() {
    let site = Site::empty();
    site.write("m.conf", "user root\nallow_anonymous true\nlistener 1883\nbind_interface v0\n");
    let binary = env!("CARGO_BIN_EXE_lockgate");
    // A host of its own behind v1.
    let script = format!(
        "ip link set lo up; ip link add v0 type veth peer name v1; unshare -n sleep 60 & there=$!; sleep 0.5
         ip link set v1 netns $there; ip addr add 10.9.9.1/24 dev v0; ip link set v0 up
         nsenter -t $there -n ip addr add 10.9.9.2/24 dev v1; nsenter -t $there -n ip link set v1 up
         {binary} mosquitto -c m.conf & broker=$!
         for i in $(seq 50); do nsenter -t $there -n mosquitto_pub -h 10.9.9.1 -t t -m m -q 1 2>/dev/null && echo THERE && break; sleep 0.1; done
         mosquitto_pub -h 127.0.0.1 -t t -m m 2>&1 || echo NOT HERE
         kill $broker; wait $broker; kill $there"
    );
    let (code, said) =
        run_with(Command::new("unshare").args(["-rmn", "bash", "-ec", &script]).current_dir(site.path("")), b"");
    assert!(said.contains("THERE") && said.contains("NOT HERE"), "{code:?} {said}");
}

#[test]
fn syslog_has_lines_with_their_facility_and_severity() {
    let site = Site::empty();
    site.write("m.conf", "user root\nlog_dest syslog\nlog_facility 5\n");
    let binary = env!("CARGO_BIN_EXE_lockgate");
    let reader =
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind('/dev/log'); s.settimeout(10)
while True:
    line = s.recv(4096); print(line.decode(), flush=True)
    if b'stopped' in line: break
";
    site.write("reader.py", reader);
    // A /dev of its own, with nobody's log in it.
    let script = format!(
        "mkdir dev; mount -t tmpfs tmpfs dev; for node in null zero random urandom; do touch dev/$node; mount --bind /dev/$node dev/$node; done
         mount --rbind dev /dev; ip link set lo up
         python3 reader.py > lines & reader=$!; for i in $(seq 50); do test -S /dev/log && break; sleep 0.1; done
         {binary} mosquitto -c m.conf & broker=$!
         for i in $(seq 50); do mosquitto_pub -t t -m m -q 1 2>/dev/null && break; sleep 0.1; done
         kill $broker; wait $broker; wait $reader"
    );
    let (code, said) =
        run_with(Command::new("unshare").args(["-rmn", "bash", "-ec", &script]).current_dir(site.path("")), b"");
    assert_eq!(code, Some(0), "{said}");
    let lines = site.text("lines");
    // local5 (21), notice (5) and warning (4).
    assert!(
        lines.lines().any(|line| line.starts_with("<173>lockgate[") && line.contains("New client connected")),
        "{lines}"
    );
    assert!(
        lines.lines().any(|line| line.starts_with("<172>lockgate[") && line.contains("lets anonymous clients in")),
        "{lines}"
    );
}

#[test]
fn a_weak_hash_is_made_anew_at_the_next_login_where_that_is_asked_for() {
    let site = Site::new(&["--client", "device1"]);
    let weak = "mosquitto_passwd -H sha512 -b config/passwd alice one; mosquitto_passwd -H sha512-pbkdf2 -I 101 -b config/passwd bob two";
    let binary = env!("CARGO_BIN_EXE_lockgate");
    shell(&site, &format!("ln -s {binary} mosquitto_passwd; export PATH=.:$PATH; {weak}; chmod 600 config/passwd"));
    let login = |broker: &crate::site::Broker, name: &str, secret: &str| {
        tool(&site, &format!("mosquitto_pub -p {} -u {name} -P {secret} -t t -m m -q 1", broker.plain_port)).0
    };
    let broker = site.serve();
    assert_eq!(login(&broker, "alice", "one"), Some(0));
    assert!(site.ok(&["status"]).contains("2 password(s) have hashes of old kinds"));
    assert!(site.text("config/passwd").contains("alice:$6$"));
    drop(broker);
    site.edit("config/lockgate.yaml", "rehash: false", "rehash: true");
    let broker = site.serve();
    assert_ne!(login(&broker, "alice", "wrong"), Some(0));
    assert_eq!(login(&broker, "alice", "one"), Some(0));
    broker.wait_for("the password of alice has a hash of argon2id now");
    let text = site.text("config/passwd");
    assert!(text.contains("alice:$argon2id$") && text.contains("bob:$7$101$"), "{text}");
    eventually("bob alone", || site.ok(&["status"]).contains("1 password(s) have hashes of old kinds"));
    assert_eq!((login(&broker, "alice", "one"), login(&broker, "bob", "two")), (Some(0), Some(0)));
    broker.wait_for("the password of bob has a hash of argon2id now");
    assert_ne!(login(&broker, "alice", "two"), Some(0));
    eventually("nobody", || !site.ok(&["status"]).contains("old kinds"));
}

#[test]
fn a_unix_socket_belongs_to_the_user_that_the_broker_becomes_and_takes_who_it_is() {
    if run_with(Command::new("id").arg("-u"), b"").1.trim() != "0" {
        eprintln!("NOT RUN: this needs root, to become another user");
        return;
    }
    let site = Site::empty();
    let port = free_port();
    shell(&site, "chmod 755 .; mosquitto_passwd -c -b passwd alice one; printf 'nonsense\\nbob:$9$x\\n' >> passwd");
    let folder = site.path("").display().to_string();
    site.write(
        "m.conf",
        &format!(
            "user mosquitto\nallow_anonymous false\npassword_file {folder}/passwd\nlistener {port} 127.0.0.1\nlistener 0 {folder}/m.sock\n"
        ),
    );
    let broker = serve(&site, &[port]);
    eventually("the socket", || site.path("m.sock").exists());
    assert_eq!(shell(&site, "stat -c %U m.sock").trim(), "mosquitto");
    // Who has a line that cannot be read does not come in; the others do.
    broker.wait_for("passwd:2: expected NAME:HASH: nobody comes in by this line; `mosquitto_passwd` sets it anew");
    let login = |more: &str| tool(&site, &format!("mosquitto_pub {more} -t t -m m -q 1")).0 == Some(0);
    assert!(login(&format!("-p {port} -u alice -P one")));
    assert!(!login(&format!("-p {port} -u bob -P x")));
}

#[test]
fn mosquitto_passwd_writes_through_links_and_into_files_that_are_mounted() {
    let site = Site::empty();
    let binary = env!("CARGO_BIN_EXE_lockgate");
    shell(
        &site,
        &format!(
            "ln -s {binary} mosquitto_passwd; mkdir real; ./mosquitto_passwd -c -b real/passwd alice one; ln -s real/passwd link
             ./mosquitto_passwd -b link bob two; test -L link; grep -q '^bob:' real/passwd"
        ),
    );
    let script = "touch mounted; mount --bind real/passwd mounted; ./mosquitto_passwd -b mounted carol three; ./mosquitto_passwd -D mounted alice
        grep -q '^carol:' real/passwd; ! grep -q '^alice:' real/passwd; ls -A";
    let (code, said) =
        run_with(Command::new("unshare").args(["-rm", "bash", "-ec", script]).current_dir(site.path("")), b"");
    assert!(code == Some(0) && !said.contains("staged"), "{said}");
}
