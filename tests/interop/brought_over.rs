//! `lockgate import mosquitto`: an installation becomes a site, and its clients go on.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::clients::free_port;
use crate::site::{Site, eventually, lockgate};
use crate::stand_in::{GUIDE, shell, tool};

/// The guide's installation in `etc`, on ports that are free.
fn installation(more: &str) -> (Site, u16, u16) {
    let site = Site::empty();
    shell(&site, &format!("mkdir etc; cd etc; {GUIDE}"));
    shell(
        &site,
        "cd etc; mosquitto_passwd -b -H sha512 passwd carol third; printf 'dave:nonsense\\n' >> passwd; printf 'topic read open\\npattern readwrite #\\n' > acl; chmod 644 server.key",
    );
    let (plain, tls) = (free_port(), free_port());
    let etc = site.path("etc").display().to_string();
    site.write(
        "etc/mosquitto.conf",
        &format!(
            "listener {plain}\nlistener {tls}\ncafile {etc}/ca.crt\ncertfile {etc}/server.crt\nkeyfile {etc}/server.key\n\
             require_certificate true\nallow_anonymous false\npassword_file {etc}/passwd\nacl_file {etc}/acl\nmax_queued_messages 50\nlog_dest file {etc}/m.log\n\
             connection far\naddress 192.0.2.1\ntopic # both\n{more}"
        ),
    );
    (site, plain, tls)
}

#[test]
fn a_guide_s_installation_becomes_a_site_and_its_clients_go_on() {
    let (site, plain, tls) = installation("");
    let import = ["import", "mosquitto", "etc", "--dir", "new"];
    let run = |arguments: &[&str]| {
        let output = lockgate().args(arguments).current_dir(site.path("")).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), said)
    };
    let before = shell(&site, "ls -lR etc");
    let (code, said) = run(&[&import[..], &["--dry-run"]].concat());
    assert!(code == Some(0) && said.contains("Nothing was changed") && !site.path("new").exists(), "{said}");
    let (code, said) = run(&import);
    assert_eq!(code, Some(0), "{said}");
    for words in [
        "passwd: 2 password(s) have hashes that are quick to guess at",
        "passwords and messages can be read on the wire",
        "server.key can be read by others (mode 0644)",
        "etc/server.crt: an X.509 v1 certificate, which modern clients refuse",
        "passwd:2: \"bob b\" cannot be a name here",
        "passwd:4: dave: ",
        "bridges are not there yet",
        "m.log: that stays Mosquitto's",
        "started by root the broker stays root: `user: mosquitto`",
        "Client:  client, with its key",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // By its file's name alone: the CA's key lies beside the CA.
    let (_, by_file) = run(&["import", "mosquitto", "etc/mosquitto.conf", "--dir", "other", "--dry-run"]);
    assert!(by_file.contains("with its key") && by_file.contains("etc/ca.key"), "{by_file}");
    // What was there is as it was.
    assert_eq!(shell(&site, "ls -lR etc"), before);
    let modes = shell(&site, "cd new; stat -c '%a %n' config/passwd config/lockgate.yaml pki/server.key pki/ca.key");
    assert!(modes.lines().all(|line| line.starts_with("600 ")), "{modes}");
    assert!(run(&import).1.contains("exists: this site has a configuration"));
    let yaml = site.text("new/config/lockgate.yaml");
    assert!(yaml.matches("# Better: ").count() > 5 && yaml.contains("queued-messages-max: 50"), "{yaml}");

    let new = site.path("new").display().to_string();
    let start = || {
        let mut command = lockgate();
        command.args(["serve", "--dir", &new]);
        let broker = crate::site::Broker::start(command, site.path("new"));
        broker.wait_for("is ready");
        broker
    };
    let broker = start();
    let publish = |more: &str| tool(&site, &format!("mosquitto_pub -t t -m m -q 1 {more}"));
    assert_eq!(publish(&format!("-p {plain} -u alice -P secret")).0, Some(0));
    assert_eq!(publish(&format!("-p {plain} -u carol -P third")).0, Some(0));
    assert_ne!(publish(&format!("-p {plain} -u carol -P wrong")).0, Some(0));
    broker.wait_for("the password of carol has a hash of argon2id now");
    let files = "--cafile etc/ca.crt --insecure --cert etc/client.crt --key etc/client.key";
    assert_eq!(publish(&format!("-p {tls} {files} -u alice -P secret")).0, Some(0));
    // As before: the certificate opens the door and says nothing.
    assert_ne!(publish(&format!("-p {tls} {files}")).0, Some(0));
    assert_ne!(publish(&format!("-p {tls} --cafile etc/ca.crt --insecure -u alice -P secret")).0, Some(0));
    // What was weak is mended with what was said: a certificate with names, and one door the less for a thief.
    assert_eq!(run(&["server", "renew", "--dir", &new]).0, Some(0));
    eventually("the new certificate", || {
        publish(&format!(
            "-h localhost -p {tls} --cafile etc/ca.crt --cert etc/client.crt --key etc/client.key -u alice -P secret"
        ))
        .0 == Some(0)
    });
    assert_eq!(run(&["client", "revoke", "client", "--dir", &new]).0, Some(0));
    assert_ne!(publish(&format!("-p {tls} {files} -u alice -P secret")).0, Some(0));
    let (code, said) = run(&["client", "add", "pump7", "--dir", &new]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn without_its_key_the_ca_stays_where_it_is_and_its_clients_come_in_as_before() {
    let (site, _, tls) = installation("");
    shell(
        &site,
        "mkdir safe; mv etc/ca.key safe; rm etc/client.key.bak 2>/dev/null || true; cp etc/client.crt etc/client.key safe; rm etc/client.crt; cd etc; openssl x509 -req -in client.csr -CA ca.crt -CAkey ../safe/ca.key -CAcreateserial -out v1.crt -days 9 2>/dev/null",
    );
    let said = shell(&site, &format!("{} import mosquitto etc --dir new", env!("CARGO_BIN_EXE_lockgate")));
    assert!(said.contains("the CA's key is not here: its clients come in as before"), "{said}");
    assert!(said.contains("etc/v1.crt: an X.509 v1 certificate, which a site refuses"), "{said}");
    assert!(!site.path("new/pki/ca.crt").exists());
    // What serves from where it lies has to be closed first: the command was among what is weak.
    let close = format!("chmod 600 {}/etc/server.key", site.path("").display());
    assert!(said.contains(&close), "{said}");
    shell(&site, &close);
    let mut command = lockgate();
    command.args(["serve", "--dir", "new"]).current_dir(site.path(""));
    let broker = crate::site::Broker::start(command, site.path("new"));
    broker.wait_for("is ready");
    let line = format!(
        "mosquitto_pub -p {tls} --cafile etc/ca.crt --insecure --cert safe/client.crt --key safe/client.key -u alice -P secret -t t -m m -q 1"
    );
    let (code, said) = tool(&site, &line);
    assert_eq!(code, Some(0), "{said} {}", broker.log());
    // With the folder that has the key the site becomes the CA.
    let said = shell(&site, &format!("{} import mosquitto etc safe --dir other", env!("CARGO_BIN_EXE_lockgate")));
    assert!(said.contains("with its key safe/ca.key") && said.contains("Client:  client, with its key"), "{said}");
    assert!(site.path("other/pki/ca.key").exists());
}

#[test]
fn listeners_with_files_of_their_own_and_all_else_that_can_be_said_come_over() {
    let site = Site::empty();
    let (near, web, far) = (free_port(), free_port(), free_port());
    shell(
        &site,
        "mkdir etc; mosquitto_passwd -c -b etc/near.pw alice one; mosquitto_passwd -c -b etc/far.pw alice two; printf 'topic read #\\n' > etc/far.acl",
    );
    let etc = site.path("etc").display().to_string();
    site.write(
        "etc/mosquitto.conf",
        &format!(
            "per_listener_settings true\nmax_keepalive 100\npersistent_client_expiration 2d\nmessage_size_limit 1000\nsys_interval 0\nlog_type error\nlog_dest stderr\nlog_dest syslog\nqueue_qos0_messages true\nmax_inflight_messages 5\n\
             listener {near} 127.0.0.1\nmount_point site1/\npassword_file {etc}/near.pw\nmax_qos 1\naccept_protocol_versions 4,5\nallow_zero_length_clientid false\n\
             listener {web} 127.0.0.1\nprotocol websockets\nallow_anonymous true\nwebsockets_origin https://a.example\nuse_username_as_clientid true\nmax_connections 7\n\
             listener {far} ::1\npassword_file {etc}/far.pw\nacl_file {etc}/far.acl\nlistener_auto_id_prefix far-\n\
             listener 0 {etc}/m.sock\nallow_anonymous true\n"
        ),
    );
    let said =
        shell(&site, &format!("{} import mosquitto etc/mosquitto.conf --dir new", env!("CARGO_BIN_EXE_lockgate")));
    assert!(said.contains(&format!("listener 127.0.0.1:{web}: anybody may come in without a name")), "{said}");
    let yaml = site.text("new/config/lockgate.yaml");
    for line in [
        "mount-point: \"site1/\"",
        "passwords: passwd",
        "passwords: passwd-2",
        "passwords: none",
        "acl: acl",
        "qos-max: 1",
        "versions: \"3.1.1 5.0\"",
        "empty-client-id: false",
        "transport: ws",
        "origins: https://a.example",
        "client-id-from-user-name: true",
        "connections-max: 7",
        "address: \"::1\"",
        "assigned-id-prefix: \"far-\"",
        "keep-alive-max: 100s",
        "session-expiry-max: 172800s",
        "payload-size-max: 1000B",
        "queue-qos-0: true",
        "inflight-max: 5",
        "receive-maximum: 5",
        "sys-interval: none",
        "level: error",
        "to: \"stderr syslog\"",
        "transport: unix",
    ] {
        assert!(yaml.contains(line), "{line}: {yaml}");
    }
    let mut command = lockgate();
    command.args(["serve", "--dir", "new"]).current_dir(site.path("")).env("LOCKGATE__LOG__LEVEL", "info");
    let broker = crate::site::Broker::start(command, site.path("new"));
    broker.wait_for("is ready");
    let login = |more: &str| tool(&site, &format!("mosquitto_pub -i me -t t -m m -q 1 -V 5 {more}")).0 == Some(0);
    assert!(login(&format!("-h 127.0.0.1 -p {near} -u alice -P one")));
    assert!(!login(&format!("-h 127.0.0.1 -p {near} -u alice -P two")));
    assert!(!login(&format!("-h ::1 -p {far} -u alice -P one")));
    let (code, said) = tool(&site, &format!("mosquitto_pub -h ::1 -p {far} -u alice -P two -t t -m m -q 1 -V 5"));
    assert!(said.contains("ot authori"), "{code:?} {said}");
}

#[test]
fn debian_s_own_installation_comes_over() {
    let site = Site::empty();
    let said = shell(&site, &format!("{} import mosquitto /etc/mosquitto --dir new", env!("CARGO_BIN_EXE_lockgate")));
    assert!(said.contains("lockgate init --dir new"), "{said}");
    let yaml = site.text("new/config/lockgate.yaml");
    assert!(yaml.contains("address: loopback") && yaml.contains("this machine alone, and anybody"), "{yaml}");
    // Who is added to what had no passwords can come in.
    let (code, said) = tool(&site, &format!("{} init --dir new --client device1", env!("CARGO_BIN_EXE_lockgate")));
    assert!(code == Some(0) && site.path("new/pki/ca.crt").exists(), "{said}");
    assert!(site.text("new/config/passwd").contains("device1:"));
}

#[test]
fn what_cannot_be_taken_over_whole_is_not_begun() {
    let (site, ..) = installation("");
    site.write("etc/acl", "user alice\ntopic allow #\n");
    let binary = env!("CARGO_BIN_EXE_lockgate");
    let import = format!("{binary} import mosquitto etc --dir new");
    let (code, said) = tool(&site, &import);
    assert!(code == Some(2) && said.contains("etc/acl: line 2: \"allow\" is not one of read"), "{said}");
    assert!(!site.path("new").exists());
    let (code, said) = tool(&site, &format!("{binary} import mosquitto nowhere"));
    assert!(code == Some(1) && said.contains("name mosquitto.conf, or the folder with it"), "{said}");
    // What is left out must not open a door.
    for line in ["psk_file x", "plugin /opt/auth.so", "proxy_protocol_v2_require_tls true"] {
        site.write("etc/mosquitto.conf", &format!("listener 1883\nallow_anonymous true\n{line}\n"));
        let (code, said) = tool(&site, &import);
        assert!(code == Some(2) && said.contains("is not done here") && !site.path("new").exists(), "{said}");
    }
    site.write("etc/mosquitto.conf", "listener 1883\nfoo bar\n");
    let (code, said) = tool(&site, &import);
    assert!(code == Some(2) && said.contains("Error found at etc/mosquitto.conf:2."), "{said}");
}

#[test]
fn nothing_that_is_there_is_lost_and_no_ca_is_trusted_where_it_was_not() {
    let (site, ..) = installation("");
    let binary = env!("CARGO_BIN_EXE_lockgate");
    shell(
        &site,
        &format!(
            "mkdir mine; openssl req -x509 -newkey rsa:2048 -nodes -keyout mine/ca.key -out mine/ca.crt -days 30 -subj /CN=mine 2>/dev/null; {binary} ca import mine --dir taken"
        ),
    );
    let before = site.text("taken/pki/ca.key");
    let (code, said) = tool(&site, &format!("{binary} import mosquitto etc --dir taken"));
    assert!(code == Some(1) && said.contains("taken/pki/ca.crt exists, and would be lost"), "{said}");
    assert!(site.text("taken/pki/ca.key") == before && !site.path("taken/config/lockgate.yaml").exists());
    // Two listeners, two CAs: each keeps its own.
    let folder = site.path("").display().to_string();
    site.write(
        "etc/mosquitto.conf",
        &format!(
            "listener 1111 127.0.0.1\ncafile {folder}/etc/ca.crt\ncertfile {folder}/etc/server.crt\nkeyfile {folder}/etc/server.key\nrequire_certificate true\n\
             listener 2222 127.0.0.1\ncafile {folder}/mine/ca.crt\ncertfile {folder}/etc/server.crt\nkeyfile {folder}/etc/server.key\nrequire_certificate true\nciphers HIGH\n"
        ),
    );
    let said = shell(&site, &format!("{binary} import mosquitto etc --dir new"));
    assert!(said.contains("listener 127.0.0.1:2222: ciphers: "), "{said}");
    let yaml = site.text("new/config/lockgate.yaml");
    let second = &yaml[yaml.find("port: 2222").unwrap()..];
    assert!(
        yaml.contains("client-ca: ../pki/ca.crt") && second.contains(&format!("client-ca: \"{folder}/mine/ca.crt\"")),
        "{yaml}"
    );
    assert_eq!(shell(&site, "stat -c %a new/config").trim(), "700");
}

#[test]
fn killed_in_the_middle_it_can_be_begun_anew() {
    let (site, ..) = installation("");
    let command = |to: &str| {
        let mut command = lockgate();
        command.args(["import", "mosquitto", "etc", "--dir", to]).current_dir(site.path(""));
        command
    };
    let begun = Instant::now();
    assert!(command("whole").output().unwrap().status.success());
    let took = begun.elapsed();
    for round in 1..=8u32 {
        let to = format!("new{round}");
        let mut child = command(&to).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(took * round / 9 + Duration::from_micros(200));
        drop(child.kill());
        child.wait().unwrap();
        // Nothing, or all: then it says that it is there.
        let again = command(&to).output().unwrap();
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(again.status.success() || said.contains("exists: this site has a configuration"), "{said}");
        let check = Command::new(env!("CARGO_BIN_EXE_lockgate"))
            .args(["client", "list", "--dir", &to])
            .current_dir(site.path(""))
            .output()
            .unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
        let same = shell(
            &site,
            &format!("diff -r whole/pki {to}/pki && diff whole/config/passwd {to}/config/passwd && echo SAME"),
        );
        assert!(same.contains("SAME"), "{same}");
        let left = shell(&site, &format!("find {to} -name '*.lockgate-staged*'"));
        assert!(left.is_empty(), "{left}");
    }
}

#[test]
fn what_tells_of_the_broker_by_other_ways_stays_behind_and_is_named() {
    let site = Site::empty();
    shell(&site, "mkdir etc www");
    let folder = site.path("").display().to_string();
    site.write(
        "etc/mosquitto.conf",
        &format!(
            "enable_control_api true\nallow_anonymous true\nplugin x/mosquitto_sparkplug_aware.so\nlistener 1883 127.0.0.1\n\
             listener 9883 127.0.0.1\nprotocol http_api\nlistener 8083 127.0.0.1\nprotocol websockets\nhttp_dir {folder}/www\n"
        ),
    );
    let said = shell(&site, &format!("{} import mosquitto etc --dir new", env!("CARGO_BIN_EXE_lockgate")));
    for left in ["protocol http_api on 127.0.0.1:9883", "http_dir ", "enable_control_api"] {
        assert!(said.contains(left) && said.contains(" stays behind: "), "{said}");
    }
    let yaml = site.text("new/config/lockgate.yaml");
    assert!(
        yaml.contains("sparkplug-aware: true") && yaml.contains("transport: ws\n") && !yaml.contains("9883"),
        "{yaml}"
    );
}
