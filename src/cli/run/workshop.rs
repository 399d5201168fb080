//! The site of a throw-away broker, in a temporary folder.

use std::path::Path;
use std::process::Stdio;

use time::{Duration, OffsetDateTime};

use super::breaks::{Does, Spoilt, Wanted};
use crate::cli::environment::Environment;
use crate::cli::{Failure, bundle, init, site};
use crate::config::{self, Faults, Settings};
use crate::pki::{self, Authority, Issued, KeyType, ServerName};
use crate::types::{Identity, Level};

/// Whose bundle the command gets.
pub(super) const CLIENT: &str = "device1";
const FAULTS: &str = "faults.json";

/// Makes the site; its folder is there and empty.
pub(super) fn make(folder: &Path, level: Level, breaks: &[Wanted]) -> Result<(), Failure> {
    let spoilt: Vec<Spoilt> = breaks
        .iter()
        .filter_map(|wanted| match wanted.of.does {
            Does::Spoil(spoilt) => Some(spoilt),
            _ => None,
        })
        .collect();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    };
    std::fs::create_dir(folder.join("config"))
        .map_err(|error| Failure::new(format!("{}: {error}", folder.display())))?;
    if spoilt.contains(&Spoilt::NotAuthorized) {
        write("config/acl", "# Nothing is allowed.\n")?;
    }
    let text = configuration(level, 0);
    write("config/lockgate.yaml", &text)?;
    init::for_run(folder, CLIENT)?;
    let settings = config::load(&folder.join("config/lockgate.yaml"), []).map_err(Failure::configuration)?;
    for one in &spoilt {
        spoil(&settings, *one)?;
    }
    let mut faults = Faults::default();
    for wanted in breaks {
        match wanted.of.does {
            Does::Fault(set) => set(&mut faults, wanted.count),
            Does::Restart => faults.dies_after = Some(wanted.count),
            Does::Spoil(_) => faults.any_certificate = true,
        }
    }
    write(FAULTS, &serde_json::to_string(&faults).map_err(Failure::new)?)
}

fn configuration(level: Level, port: u16) -> String {
    let listener = match level {
        Level::Plain => "transport: tcp",
        Level::Tls => "transport: tls\n    client-certs: optional",
        Level::Mtls => "transport: tls\n    client-certs: required",
    };
    format!(
        "name: throw-away\nuser: none\ndata: ../data\npki: ../pki\ndurability: process\nlisteners:\n  - address: loopback\n    port: {port}\n    {listener}\nlog:\n  level: info\n"
    )
}

/// From now on the broker is at this port, also after a restart, which does not die again.
pub(super) fn settle(folder: &Path, level: Level, port: u16) -> Result<(), Failure> {
    let put = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    };
    let mut faults = faults(folder)?;
    faults.dies_after = None;
    put(FAULTS, serde_json::to_string(&faults).map_err(Failure::new)?)?;
    put("config/lockgate.yaml", configuration(level, port))
}

pub(super) fn faults(folder: &Path) -> Result<Faults, Failure> {
    let path = folder.join(FAULTS);
    let text = std::fs::read_to_string(&path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    serde_json::from_str(&text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// The variables of the bundle, as they are now that the port is known.
pub(super) fn variables(
    folder: &Path,
    level: Level,
    port: u16,
    breaks: &[Wanted],
) -> Result<Vec<(String, String)>, Failure> {
    let bundle = folder.join("pki/clients").join(CLIENT);
    let path = bundle.join("mqtt.env");
    let text = std::fs::read_to_string(&path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    let value = |name: &str| Environment::value(&text, name).map(str::to_owned);
    let in_bundle = |name: &str| bundle.join(name).to_string_lossy().into_owned();
    let bad_password = breaks.iter().any(|wanted| matches!(wanted.of.does, Does::Spoil(Spoilt::BadPassword)));
    let login = level != Level::Mtls;
    let environment = Environment {
        host: "localhost".to_owned(),
        port,
        use_tls: level != Level::Plain,
        user: login.then(|| CLIENT.to_owned()),
        password: login
            .then(|| if bad_password { "wrong".to_owned() } else { value("MQTT_PASSWORD").unwrap_or_default() }),
        ca_certs: (level != Level::Plain).then(|| in_bundle("ca.crt")),
        certificate: (level == Level::Mtls).then(|| (in_bundle("client.crt"), in_bundle("client.key"))),
    };
    let rendered = environment.render().map_err(Failure::new)?;
    std::fs::write(&path, &rendered).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Ok(rendered
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

fn spoil(settings: &Settings, how: Spoilt) -> Result<(), Failure> {
    let now = OffsetDateTime::now_utc();
    let name = &settings.name;
    let names = pki::host_names().names;
    let kind = KeyType::EcdsaP256;
    let server = |issued: Issued| {
        let tls = settings.tls_files().next().expect("its level has TLS");
        put_pair(&issued, &tls.certificate, &tls.key)
    };
    let own = || bundle::authority(settings);
    let day = Duration::days(1);
    match how {
        Spoilt::ExpiredServer => {
            server(own()?.issue_server(name, &names, kind, 1, now - day * 2).map_err(Failure::new)?)
        }
        Spoilt::NotYetValidServer => {
            server(own()?.issue_server(name, &names, kind, 90, now + day).map_err(Failure::new)?)
        }
        Spoilt::WrongHost => {
            let other = [ServerName::Dns("other.invalid".to_owned())];
            server(own()?.issue_server(name, &other, kind, 90, now).map_err(Failure::new)?)
        }
        Spoilt::UnknownCa => {
            let (stranger, _) = Authority::create("stranger", kind, 90, now).map_err(Failure::new)?;
            server(stranger.issue_server(name, &names, kind, 90, now).map_err(Failure::new)?)
        }
        Spoilt::SelfSigned => server(pki::self_signed(name, &names, kind, 90, now).map_err(Failure::new)?),
        Spoilt::ExpiredClient => {
            let identity = Identity::parse(CLIENT).expect("a name");
            let issued = own()?.issue_client(name, &identity, kind, 1, now - day * 2).map_err(Failure::new)?;
            let folder = settings.pki.join("clients").join(CLIENT);
            put_pair(&issued, &folder.join("client.crt"), &folder.join("client.key"))
        }
        Spoilt::RevokedClient => revoke(&settings.file),
        // Made where the configuration and the variables are.
        Spoilt::BadPassword | Spoilt::NotAuthorized => Ok(()),
    }
}

fn put_pair(issued: &Issued, certificate: &Path, key: &Path) -> Result<(), Failure> {
    pki::replace(certificate, issued.certificate_pem.as_bytes(), 0o644)?;
    pki::replace(key, issued.key_pem.as_bytes(), 0o600)?;
    Ok(())
}

/// As its owner does it. The bundle stays: it is what a thief, or a device that nobody told, still has.
fn revoke(configuration: &Path) -> Result<(), Failure> {
    let folder = configuration.parent().and_then(Path::parent).expect("it was made so");
    let bundle = folder.join("pki/clients").join(CLIENT);
    let copy = |name: &str| std::fs::read(bundle.join(name)).map_err(Failure::new);
    let kept = ["ca.crt", "client.crt", "client.key", "mqtt.env"].map(|name| (name, copy(name)));
    let mut command = site::this_program()?;
    command.args(["client", "revoke", CLIENT, "--config"]).arg(configuration);
    let output = command.stdin(Stdio::null()).output().map_err(Failure::new)?;
    if !output.status.success() {
        return Err(Failure::new(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    std::fs::create_dir_all(&bundle).map_err(Failure::new)?;
    for (name, content) in kept {
        pki::replace(&bundle.join(name), &content?, if name.ends_with(".crt") { 0o644 } else { 0o600 })?;
    }
    Ok(())
}
