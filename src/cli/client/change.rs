//! What changes who may connect.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::super::bundle::{self, Export, Issuing, Password, Reach, Wanted};
use super::super::environment::Environment;
use super::super::site::{self, Files};
use super::super::{Failure, SiteArguments, ask};
use super::{Add, Editing, Env, Passwd, edit, learned, list, nobody, passwords};
use crate::admin::api;
use crate::auth::Cost;
use crate::config::Settings;
use crate::pki::{KeyType, Owner, Transaction};
use crate::types::{Identity, Level};

pub(super) fn add(arguments: &Add) -> Result<(), Failure> {
    let given = match (arguments.password_stdin, &arguments.password_file) {
        (false, None) => None,
        (_, file) => Some(ask::one_password(file.as_deref())?),
    };
    let editing = edit(&arguments.site)?;
    let Editing { settings, files, owner, .. } = &editing;
    let name = &arguments.name;
    let (text, names) = passwords(files)?;
    let ledger = files.ledger()?;
    if names.contains(name) || !ledger.current_of(name).is_empty() {
        return Err(Failure::new(format!(
            "{name} exists: `lockgate client show {name}` says what it has, `lockgate client remove {name}` makes room"
        )));
    }
    let authority = if arguments.no_cert { None } else { Some(bundle::authority(settings)?) };
    let (plain_port, tls_port) = site::ports(settings);
    let reach = Reach { host: "localhost".to_owned(), plain_port, tls_port };
    let issuing = Issuing {
        authority: authority.as_ref(),
        ca_pem: bundle::ca_pem(settings)?,
        site: &settings.name,
        key_type: KeyType::parse(&arguments.key_type).expect("clap takes no other"),
        days: arguments.days,
        now: OffsetDateTime::now_utc(),
    };
    let wanted = Wanted {
        identity: name.clone(),
        certificate: !arguments.no_cert,
        password: match (arguments.no_password, given) {
            (true, _) => Password::None,
            (false, Some(password)) => Password::Given(password),
            (false, None) => Password::Generated,
        },
    };
    let mut change = Transaction::new(&files.anchor);
    let made = bundle::make(&mut change, files, &issuing, &reach, &wanted, *owner)?;
    if let Some(hash) = &made.hash {
        change.write(&files.passwords, site::edit_passwords(&text, name, Some(hash)), 0o600, *owner);
    }
    if !made.events.is_empty() {
        files.record(&mut change, &made.events, *owner)?;
    }
    if let Some(level) = arguments.min_level.as_deref().and_then(Level::parse) {
        change.write(&files.identities, site::edit_identities(&files.identities, name, Some(level))?, 0o600, *owner);
    }
    change.commit()?;
    let what = match (made.events.is_empty(), made.hash.is_some()) {
        (false, true) => "a certificate and a password",
        (false, false) => "a certificate",
        _ => "a password",
    };
    say!("{name} has {what}.");
    if let Some(folder) = &made.folder {
        let text = site::read_or_empty(&folder.join("mqtt.env"))?;
        let lacks = made.events.is_empty() && Environment::value(&text, "MQTT_PASSWORD").is_none();
        match lacks {
            true => say!(
                "  bundle: {}/ (mqtt.env lacks the password, which is not kept here: add MQTT_PASSWORD)",
                folder.display()
            ),
            false => say!("  bundle: {}/ (mqtt.env is ready for an application)", folder.display()),
        }
    }
    if let (Some(fingerprint), Some(expires)) = (&made.fingerprint, &made.expires) {
        say!("  certificate: expires {expires}, SHA-256 {fingerprint}");
    }
    if let Some(level) = &arguments.min_level {
        say!("  minimum level: {level}");
    }
    learned(editing)
}

pub(super) fn env(arguments: &Env) -> Result<(), Failure> {
    let settings = site::load(&arguments.site)?;
    let level = Level::parse(&arguments.level).expect("clap takes no other");
    let files = Files::of(&settings);
    let (_, names) = passwords(&files)?;
    let Some(name) = &arguments.name else { return env_of_all(arguments, &settings, level, names) };
    if !names.contains(name) && files.ledger()?.current_of(name).is_empty() {
        return Err(nobody(name));
    }
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}-{level}")));
    let levels = crate::gate::read_min_levels(&settings).map_err(Failure::configuration)?;
    write_env(arguments, &settings, (name, level), &levels, &out)
}

/// For those who do not come over TLS yet, at a higher level where that is the lowest at which they get in. What cannot
/// be made is said, and the others are made all the same; what lies there is not made again.
fn env_of_all(arguments: &Env, settings: &Settings, level: Level, names: BTreeSet<Identity>) -> Result<(), Failure> {
    let files = Files::of(settings);
    let mut all = names;
    all.extend(files.ledger()?.current_by_owner().into_keys());
    let countdown = list::countdown(settings)?;
    let (done, left): (Vec<_>, Vec<_>) = all.into_iter().partition(|name| countdown.is_on_tls(name.as_str()));
    let folder = arguments.out.as_ref().expect("clap demands it");
    std::fs::create_dir_all(folder).map_err(|error| Failure::new(format!("{}: {error}", folder.display())))?;
    let levels = crate::gate::read_min_levels(settings).map_err(Failure::configuration)?;
    let (mut made, mut kept, mut failed) = (0, 0, 0);
    for name in &left {
        let out = folder.join(name.as_str());
        if out.exists() {
            kept += 1;
            continue;
        }
        let own = files.bundles.join(name.as_str());
        let text = site::read_or_empty(&own.join("mqtt.env"))?;
        let by_certificate_alone =
            own.join("client.key").exists() && Environment::value(&text, "MQTT_PASSWORD").is_none();
        let level = match by_certificate_alone {
            true => Level::Mtls,
            false => level.max(levels.get(name).copied().unwrap_or_default()),
        };
        match write_env(arguments, settings, (name, level), &levels, &out) {
            Ok(()) => made += 1,
            Err(failure) => {
                failed += 1;
                say!("{name}: not made: {}", failure.message);
            }
        }
    }
    let kept = if kept > 0 { format!(" ({kept} lay there before)") } else { String::new() };
    say!("{made} bundle(s) made in {}{kept}; {} come over TLS already", folder.display(), done.len());
    match failed {
        0 => Ok(()),
        _ => Err(Failure::new(format!("{failed} bundle(s) could not be made"))),
    }
}

/// `at`: whose, and at which level.
fn write_env(
    arguments: &Env,
    settings: &Settings,
    at: (&Identity, Level),
    levels: &BTreeMap<Identity, Level>,
    out: &Path,
) -> Result<(), Failure> {
    let (files, (name, level)) = (Files::of(settings), at);
    let host = match &arguments.host {
        Some(host) => host.clone(),
        None => crate::pki::host_names().host,
    };
    let prefix = match &arguments.path_prefix {
        Some(prefix) => prefix.clone(),
        None => std::path::absolute(out).map_err(Failure::new)?,
    };
    let owner = arguments.owner.as_deref().map(find_owner).transpose()?;
    let export = Export { identity: name, level, host: host.clone(), prefix };
    let made = export.files(settings)?;
    if out.exists() {
        return Err(Failure::new(format!("{} exists: name another folder with --out", out.display())));
    }
    crate::pki::write_folder(out, &made, owner)?;
    say!("{}: a bundle for {name} to connect to {host} at level {level}", out.display());
    if level == Level::Plain {
        say!("  without TLS: whoever is on the way reads its password and its messages");
    }
    let environment = site::read_or_empty(&files.bundles.join(name.as_str()).join("mqtt.env"))?;
    let has_password = Environment::value(&environment, "MQTT_PASSWORD").is_some();
    let min_level = levels.get(name).copied().unwrap_or_default();
    for warning in export.warnings(settings, has_password, min_level) {
        say!("  warning: {warning}");
    }
    Ok(())
}

fn find_owner(text: &str) -> Result<Owner, Failure> {
    if let Some(user) = uzers::get_user_by_name(text) {
        return Ok(Owner { uid: user.uid(), gid: user.primary_group_id() });
    }
    let numbers =
        text.split_once(':').and_then(|(uid, gid)| Some(Owner { uid: uid.parse().ok()?, gid: gid.parse().ok()? }));
    numbers
        .ok_or_else(|| Failure::new(format!("--owner {text:?} is no user of this machine; uid:gid is understood too")))
}

pub(super) fn passwd(arguments: &Passwd) -> Result<(), Failure> {
    let given = match (arguments.password_stdin, &arguments.password_file) {
        (false, None) if ask::is_interactive() => ask::new_password(arguments.name.as_str())?,
        (false, None) => None,
        (_, file) => Some(ask::one_password(file.as_deref())?),
    };
    let editing = edit(&arguments.site)?;
    let Editing { settings, files, owner, .. } = &editing;
    let name = &arguments.name;
    let (text, names) = passwords(files)?;
    if !names.contains(name) && files.ledger()?.current_of(name).is_empty() {
        return Err(nobody(name));
    }
    let (password, cost) = match given {
        Some(password) => (password, Cost::Human),
        None => (site::generate_secret(), Cost::Generated),
    };
    let mut change = Transaction::new(&files.anchor);
    change.write(
        &files.passwords,
        site::edit_passwords(&text, name, Some(&site::hash(&password, cost))),
        0o600,
        *owner,
    );
    let folder = files.bundles.join(name.as_str());
    let environment = folder.join("mqtt.env");
    let here = site::read_or_empty(&environment)?;
    // A generated one goes into the bundle, where somebody can read it once; what a person chose is
    // written nowhere, and an old one that a bundle holds is of no use any more.
    let holds = cost == Cost::Generated;
    let text = match (holds, here.is_empty()) {
        (true, true) => Some(new_environment(settings, name, &password)?),
        (true, false) => {
            Some(Environment::with_password(&here, Some(name.as_str()), Some(&password)).map_err(Failure::new)?)
        }
        (false, true) => None,
        (false, false) => Some({
            // With a certificate, a name without its password would only be refused.
            let user = (!folder.join("client.crt").exists()).then_some(name.as_str());
            Environment::with_password(&here, user, None).map_err(Failure::new)?
        }),
    };
    if let Some(text) = text {
        change.folder(&files.bundles, 0o700, *owner);
        change.folder(&folder, 0o700, *owner);
        change.write(&environment, text, 0o600, *owner);
    }
    change.commit()?;
    say!("{name} has a new password.");
    match (holds, Environment::value(&here, "MQTT_PASSWORD").is_some()) {
        (true, _) => say!("  it is in {}", environment.display()),
        (false, true) => say!("  the old one was taken out of {}", environment.display()),
        (false, false) => {}
    }
    say!("  connections that were made with the old one stay; `lockgate client kick {name}` ends them");
    learned(editing)
}

fn new_environment(settings: &Settings, name: &Identity, password: &str) -> Result<String, Failure> {
    let (plain_port, tls_port) = site::ports(settings);
    let environment = Environment {
        host: "localhost".to_owned(),
        port: tls_port.or(plain_port).unwrap_or(8883),
        use_tls: tls_port.is_some(),
        ca_certs: match tls_port {
            Some(_) => Some(super::super::environment::path_text(
                &std::path::absolute(bundle::trusted(settings)).map_err(Failure::new)?,
            )),
            None => None,
        },
        user: Some(name.to_string()),
        password: Some(password.to_owned()),
        certificate: None,
    };
    environment.render().map_err(Failure::new)
}

pub(super) fn kick(arguments: &SiteArguments, name: String) -> Result<(), Failure> {
    let settings = site::load(arguments)?;
    let kicked: api::Kicked =
        site::ask(&settings, "/kick", Some(&api::Kick { name: name.clone() })).map_err(Failure::new)?;
    match kicked.connections {
        0 => Err(Failure::new(format!("{name} is not connected: `lockgate client list` shows who is"))),
        count => {
            say!("{name}: {count} connection(s) ended");
            Ok(())
        }
    }
}
