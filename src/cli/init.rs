//! `lockgate init`: a site where there is none, or what is missing of one. Nothing that exists is
//! overwritten.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::PossibleValuesParser;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::bundle::{Password, Wanted};
use super::make::Maker;
use super::report::{Report, shell};
use super::{Failure, ask};
use crate::pki::{self, CA_DAYS, KeyType, LEAF_DAYS_MAX, Lock, Owner, Permitted, Recovery, ServerName, Transaction};
use crate::types::Identity;

/// What `init` was asked for.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  lockgate init --client device1 --client pump7 --user alice --san broker.example")]
pub(super) struct Arguments {
    /// The site's folder; config/, pki/ and data/ are made in it
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub(super) dir: PathBuf,
    /// Use /etc/lockgate and /var/lib/lockgate, and a user `lockgate` that owns all but ca.key
    #[arg(long, conflicts_with = "dir")]
    pub(super) system: bool,
    /// The site's name, in the CA's subject [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Another name or address that clients dial (repeatable)
    #[arg(long, value_name = "NAME|IP")]
    pub(super) san: Vec<String>,
    /// A device: certificate and password of the same name (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(super) client: Vec<Identity>,
    /// A person or program with a password only (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(super) user: Vec<Identity>,
    /// Read the passwords of --user from standard input, a line each in their order
    #[arg(long, conflicts_with = "password_file")]
    pub(super) password_stdin: bool,
    /// Read the passwords of --user from a file, a line each in their order
    #[arg(long, value_name = "FILE")]
    pub(super) password_file: Option<PathBuf>,
    /// What the TLS listener asks of clients
    #[arg(long, value_name = "WHAT", default_value = "optional", value_parser = PossibleValuesParser::new(["off", "optional", "required"]))]
    pub(super) client_certs: String,
    /// Who may use plain MQTT without TLS: this machine alone, all, nobody
    #[arg(long, value_name = "WHO", default_value = "loopback", value_parser = PossibleValuesParser::new(["loopback", "all", "off"]))]
    pub(super) plain: String,
    /// Port of plain MQTT
    #[arg(long, value_name = "PORT", default_value_t = 1883)]
    pub(super) plain_port: u16,
    /// Port of MQTT over TLS
    #[arg(long, value_name = "PORT", default_value_t = 8883)]
    pub(super) tls_port: u16,
    /// Kind of all keys
    #[arg(long, value_name = "KIND", default_value = "ecdsa-p256", value_parser = PossibleValuesParser::new(["ecdsa-p256", "rsa-2048", "rsa-3072", "ed25519"]))]
    pub(super) key_type: String,
    /// How long server and client certificates live, days
    #[arg(long, value_name = "DAYS", default_value_t = LEAF_DAYS_MAX, value_parser = clap::value_parser!(u32).range(1..=i64::from(LEAF_DAYS_MAX)))]
    pub(super) days: u32,
    /// How long the CA lives, days
    #[arg(long, value_name = "DAYS", default_value_t = CA_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(super) ca_days: u32,
    /// Make a root, and a CA below it that issues; the root's key is written to --root-key-out, and to nowhere else
    #[arg(long, requires = "root_key_out")]
    pub(super) intermediate: bool,
    /// Where the root's key goes, under a passphrase: a medium that is kept elsewhere
    #[arg(long, value_name = "FILE", requires = "intermediate")]
    pub(super) root_key_out: Option<PathBuf>,
    /// Read the passphrase of the root's key from this file's first line, in place of asking for it
    #[arg(long, value_name = "FILE", requires = "intermediate")]
    pub(super) root_passphrase_file: Option<PathBuf>,
    /// Keep the CA's key under a passphrase, which is asked for
    #[arg(long)]
    pub(super) ca_passphrase: bool,
    /// The same, with the passphrase from this file's first line
    #[arg(long, value_name = "FILE")]
    pub(super) ca_passphrase_file: Option<PathBuf>,
    /// Let the CA issue for this name (and all below it), address or network alone, and for this server's own names
    /// (repeatable; some microcontrollers refuse such a CA)
    #[arg(long, value_name = "NAME|NETWORK")]
    pub(super) permit: Vec<String>,
    /// Let the broker use the CA's key to renew its own certificate
    #[arg(long)]
    pub(super) self_renew: bool,
    /// shared: every identity may read and write all topics but $...; own: each only below NAME/
    #[arg(long, value_name = "WHICH", default_value = "shared", value_parser = PossibleValuesParser::new(["shared", "own"]))]
    pub(super) acl: String,
    /// Say what was made as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Ask nothing
    #[arg(long, short)]
    pub(super) yes: bool,
}

/// Where a site's parts are.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) config: PathBuf,
    pub(super) pki: PathBuf,
    pub(super) data: PathBuf,
    /// As they stand in the configuration.
    pub(super) data_text: &'static str,
    pub(super) pki_text: &'static str,
}

impl Layout {
    fn below(folder: &Path) -> Layout {
        Layout {
            config: folder.join("config"),
            pki: folder.join("pki"),
            data: folder.join("data"),
            data_text: "../data",
            pki_text: "../pki",
        }
    }

    fn system() -> Layout {
        Layout {
            config: PathBuf::from("/etc/lockgate"),
            pki: PathBuf::from("/etc/lockgate/pki"),
            data: PathBuf::from("/var/lib/lockgate"),
            data_text: "/var/lib/lockgate",
            pki_text: "pki",
        }
    }

    pub(super) fn file(&self) -> PathBuf {
        self.config.join("lockgate.yaml")
    }
}

pub(super) fn run(mut arguments: Arguments) -> Result<(), Failure> {
    if !arguments.yes && !arguments.json && ask::is_interactive() {
        question(&mut arguments)?;
    }
    let report = make(&arguments)?;
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&report).map_err(Failure::new)?);
    } else {
        say!("{}{}", report.table(), report.commands(&arguments.serve_command()));
    }
    Ok(())
}

/// What `up` makes where nothing exists yet.
pub(super) fn for_up(
    dir: &Path,
    plain_port: Option<u16>,
    tls_port: Option<u16>,
    san: Vec<String>,
) -> Result<Report, Failure> {
    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        arguments: Arguments,
    }
    let Defaults { mut arguments } = <Defaults as clap::Parser>::parse_from(["init", "--client", "device1"]);
    arguments.dir = dir.to_owned();
    arguments.san = san;
    arguments.plain_port = plain_port.unwrap_or(arguments.plain_port);
    arguments.tls_port = tls_port.unwrap_or(arguments.tls_port);
    make(&arguments)
}

/// The rest of a throw-away site, whose configuration is there: certificates, a password, and a client's bundle.
pub(super) fn for_run(dir: &Path, client: &str) -> Result<Report, Failure> {
    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        arguments: Arguments,
    }
    let Defaults { mut arguments } =
        <Defaults as clap::Parser>::parse_from(["init", "--client", client, "--days", "90", "--yes"]);
    arguments.dir = dir.to_owned();
    make(&arguments)
}

/// What can be tried on a site that exists: its first device, if it is still there.
pub(super) fn existing(dir: &Path) -> Result<Option<Report>, Failure> {
    let layout = Layout::below(if dir == Path::new(".") { Path::new("") } else { dir });
    if !layout.pki.join("clients/device1/mqtt.env").exists() {
        return Ok(None);
    }
    for_up(dir, None, None, Vec::new()).map(Some)
}

/// The few things that matter, with good defaults.
fn question(arguments: &mut Arguments) -> Result<(), Failure> {
    if arguments.layout()?.file().exists() {
        return Ok(());
    }
    let host = pki::host_names().host;
    if arguments.name.is_none() {
        arguments.name = Some(ask::text("Name of this site:", &host, "it stands in the CA's subject")?);
    }
    if arguments.san.is_empty() {
        let answer = ask::words(
            "More names or addresses that clients dial:",
            "",
            "separated by spaces; this host's own are included",
            |word| ServerName::parse(word).map(drop).map_err(|error| error.to_string()),
        )?;
        arguments.san = answer.split_whitespace().map(str::to_owned).collect();
    }
    if arguments.client.is_empty() && arguments.user.is_empty() {
        let answer = ask::words(
            "Devices to make certificates and passwords for:",
            "device1",
            "names separated by spaces",
            |word| Identity::parse(word).map(drop).map_err(|error| error.to_string()),
        )?;
        for name in answer.split_whitespace() {
            arguments.client.push(name.parse().map_err(|error| Failure::new(format!("{name:?}: {error}")))?);
        }
    }
    if arguments.plain == "loopback"
        && !ask::confirm("Let this machine itself use plain MQTT on 1883?", true, "other machines always need TLS")?
    {
        arguments.plain = "off".to_owned();
    }
    if arguments.acl == "shared"
        && ask::confirm(
            "Keep each client to the topics below its own name?",
            false,
            "yes: NAME/...; no: every client may read and write all topics",
        )?
    {
        arguments.acl = "own".to_owned();
    }
    if !arguments.self_renew {
        arguments.self_renew = ask::confirm(
            "May the broker use the CA's key to renew its own certificate?",
            false,
            "yes: no renewal to remember; no: whoever breaks into the broker cannot make certificates",
        )?;
    }
    Ok(())
}

impl Arguments {
    fn layout(&self) -> Result<Layout, Failure> {
        Ok(match self.system {
            true => Layout::system(),
            false if self.dir == Path::new(".") => Layout::below(Path::new("")),
            false => Layout::below(&self.dir),
        })
    }

    fn serve_command(&self) -> String {
        match self.system {
            true => {
                let installed = ["/etc/systemd/system/lockgate.service", "/usr/lib/systemd/system/lockgate.service"]
                    .iter()
                    .any(|path| Path::new(path).exists());
                let first = if installed {
                    ""
                } else {
                    "(copy systemd/lockgate.service to /etc/systemd/system and this binary to /usr/bin first)\n  "
                };
                format!("{first}systemctl enable --now lockgate")
            }
            false if self.dir == Path::new(".") => "lockgate serve".to_owned(),
            false => format!("lockgate serve --dir {}", shell(&self.dir)),
        }
    }

    pub(super) fn key_type(&self) -> KeyType {
        KeyType::parse(&self.key_type).expect("clap takes no other")
    }
}

fn make(arguments: &Arguments) -> Result<Report, Failure> {
    if arguments
        .name
        .as_ref()
        .is_some_and(|name| name.trim().is_empty() || name.len() > 40 || name.contains(char::is_control))
    {
        return Err(Failure::configuration("--name has 1 to 40 characters: it stands in the CA's subject"));
    }
    if arguments.plain != "off" && arguments.plain_port != 0 && arguments.plain_port == arguments.tls_port {
        return Err(Failure::configuration("--plain-port and --tls-port are the same: each listener needs its own"));
    }
    let mut sans = Vec::new();
    for text in &arguments.san {
        sans.push(ServerName::parse(text).map_err(|error| Failure::configuration(format!("--san {error}")))?);
    }
    let permitted = arguments.permit.iter().map(|text| Permitted::parse(text)).collect::<Result<Vec<_>, _>>();
    let permitted = permitted.map_err(|error| Failure::configuration(format!("--permit {error} or network")))?;
    let wanted = wanted(arguments)?;
    let secrets = CaSecrets::of(arguments)?;
    let owner = if arguments.system { Some(system_user()?) } else { None };
    let layout = arguments.layout()?;
    std::fs::create_dir_all(&layout.config)
        .map_err(|error| Failure::new(format!("cannot make {}: {error}", layout.config.display())))?;
    restrict(&layout.config, owner)?;
    let lock = Lock::acquire(&layout.config)?;
    // A configuration that is there may have its parts elsewhere.
    let mut folders = vec![layout.config.clone(), layout.pki.clone(), layout.data.clone()];
    if let Ok(settings) = crate::config::load(&layout.file(), []) {
        folders.extend([settings.pki.clone(), settings.data.clone()]);
        let named = [&settings.passwords, &settings.acl, &settings.identities];
        folders.extend(named.into_iter().flatten().filter_map(|path| path.parent()).map(Path::to_path_buf));
        folders.extend(super::site::tls_folders(&settings));
    }
    let recovery = pki::recover(&layout.config, &folders.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    let mut maker = Maker {
        arguments,
        layout: &layout,
        owner,
        permitted,
        secrets,
        now: OffsetDateTime::now_utc(),
        change: Transaction::new(&layout.config),
        events: Vec::new(),
        root_key: None,
        link: String::new(),
        report: Report {
            configuration: layout.file(),
            made: Vec::new(),
            existed: Vec::new(),
            clients: Vec::new(),
            listeners: Vec::new(),
            notes: Vec::new(),
            reach: None,
        },
    };
    match recovery {
        Recovery::Nothing => {}
        Recovery::Finished => maker.note("an interrupted change was found and finished"),
        Recovery::Undone => maker.note("an interrupted change was found and undone"),
    }
    maker.make(&sans, &wanted)?;
    let Maker { change, report, root_key, .. } = maker;
    // The root's key is safe before anything is of use that it signed.
    if let Some((path, sealed)) = root_key {
        pki::replace(&path, sealed.as_bytes(), 0o600)?;
    }
    change.commit()?;
    drop(lock);
    Ok(report)
}

/// The passphrases of new keys.
#[derive(Default)]
pub(super) struct CaSecrets {
    pub(super) root: Option<Zeroizing<String>>,
    pub(super) ca: Option<Zeroizing<String>>,
}

impl CaSecrets {
    fn of(arguments: &Arguments) -> Result<CaSecrets, Failure> {
        let root = match (arguments.intermediate, &arguments.root_passphrase_file) {
            (false, _) => None,
            (true, file) => Some(ask::new_passphrase(file.as_deref(), "the root's key", "--root-passphrase-file")?),
        };
        let ca = match (arguments.ca_passphrase, &arguments.ca_passphrase_file) {
            (false, None) => None,
            (_, file) => Some(ask::new_passphrase(file.as_deref(), "the CA's key", "--ca-passphrase-file")?),
        };
        Ok(CaSecrets { root, ca })
    }
}

pub(super) fn restrict(folder: &Path, owner: Option<Owner>) -> Result<(), Failure> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let failed = |error: std::io::Error| Failure::new(format!("cannot protect {}: {error}", folder.display()));
    let metadata = std::fs::metadata(folder).map_err(failed)?;
    // A folder of a git checkout, with samples in it, stays as it is but for others' access.
    if metadata.mode() & 0o077 != 0 {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    if let Some(owner) = owner {
        std::os::unix::fs::chown(folder, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
    }
    Ok(())
}

fn wanted(arguments: &Arguments) -> Result<Vec<Wanted>, Failure> {
    let mut passwords = match (arguments.password_stdin, &arguments.password_file) {
        (false, None) => None,
        (_, file) => Some(ask::password_lines(file.as_deref())?.into_iter()),
    };
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for identity in &arguments.client {
        all.push(Wanted { identity: identity.clone(), certificate: true, password: Password::Generated });
    }
    for identity in &arguments.user {
        let password = match &mut passwords {
            Some(lines) => match lines.next() {
                Some(line) if !line.is_empty() => Password::Given(line),
                _ => {
                    return Err(Failure::configuration(format!(
                        "there is no password for --user {identity}: one line each is expected"
                    )));
                }
            },
            None if !arguments.yes && !arguments.json && ask::is_interactive() => {
                ask::new_password(identity.as_str())?.map_or(Password::Generated, Password::Given)
            }
            None => Password::Generated,
        };
        all.push(Wanted { identity: identity.clone(), certificate: false, password });
    }
    if passwords.is_some_and(|mut lines| lines.next().is_some()) {
        return Err(Failure::configuration("there are more passwords than --user: those of --client are generated"));
    }
    for wanted in &all {
        if !seen.insert(wanted.identity.clone()) {
            return Err(Failure::configuration(format!(
                "{} is named twice: a device has a password already",
                wanted.identity
            )));
        }
    }
    Ok(all)
}

/// The user `lockgate`, made where it is missing.
fn system_user() -> Result<Owner, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new("--system writes to /etc and /var/lib: run it as root"));
    }
    let find =
        || uzers::get_user_by_name("lockgate").map(|user| Owner { uid: user.uid(), gid: user.primary_group_id() });
    if let Some(owner) = find() {
        return Ok(owner);
    }
    let status = std::process::Command::new("useradd")
        .args(["--system", "--user-group", "--home-dir", "/var/lib/lockgate", "--no-create-home"])
        .args(["--shell", "/usr/sbin/nologin", "lockgate"])
        .status()
        .map_err(|error| Failure::new(format!("cannot make the user lockgate: useradd: {error}")))?;
    find().ok_or_else(|| Failure::new(format!("cannot make the user lockgate: useradd said {status}")))
}
