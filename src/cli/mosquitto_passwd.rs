//! `lockgate mosquitto_passwd`, or the binary under that name: Mosquitto's tool for password files, flag for flag.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{Failure, ask};
use crate::auth::{Cost, PasswordHash};
use crate::pki::{self, FileError};

const USAGE: &str = "\
lockgate mosquitto_passwd: manage a password file.

Usage: mosquitto_passwd [-H sha512|sha512-pbkdf2|argon2id] [-I iterations] [-c | -D] passwordfile username
       mosquitto_passwd [-H ...] [-I ...] [-c] -b passwordfile username password
       mosquitto_passwd -U passwordfile

 -b : the password is on the command line, where others can see it
 -c : make a new file, in the place of one that is there
 -D : delete the username
 -H : the kind of hash; argon2id is the default, and the only one that is slow to guess at
 -I : iterations of sha512-pbkdf2 (210000 unless told otherwise)
 -U : hash a file of plain passwords
";

struct Wanted {
    create: bool,
    delete: bool,
    batch: bool,
    upgrade: bool,
    kind: String,
    iterations: NonZeroU32,
    rest: Vec<String>,
}

fn failed(what: impl ToString) -> Failure {
    Failure::new(format!("Error: {}", what.to_string()))
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Option<Wanted>, Failure> {
    let mut wanted = Wanted {
        create: false,
        delete: false,
        batch: false,
        upgrade: false,
        kind: "argon2id".to_owned(),
        iterations: NonZeroU32::new(210_000).expect("not zero"),
        rest: Vec::new(),
    };
    let mut arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-b" => wanted.batch = true,
            "-c" => wanted.create = true,
            "-D" => wanted.delete = true,
            "-U" => wanted.upgrade = true,
            "-H" => {
                wanted.kind =
                    arguments.next().ok_or_else(|| failed("-H argument given but not enough other arguments."))?
            }
            "-I" => {
                let text = arguments.next().unwrap_or_default();
                let parsed =
                    text.parse().map_err(|_| failed(format!("Number of iterations must be > 0, not {text:?}.")))?;
                wanted.iterations = parsed;
            }
            "-h" | "--help" => return Ok(None),
            other if other.starts_with('-') && other.len() > 1 => {
                return Err(failed(format!("Unknown option '{other}'.\n\n{USAGE}")));
            }
            other => wanted.rest.push(other.to_owned()),
        }
    }
    if wanted.create && wanted.delete {
        return Err(failed("-c and -D cannot be used together."));
    }
    if !["argon2id", "sha512", "sha512-pbkdf2"].contains(&wanted.kind.as_str()) {
        return Err(failed(format!("Unknown hash type '{}'.", wanted.kind)));
    }
    Ok(Some(wanted))
}

pub(super) fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let Some(wanted) = parse(arguments)? else {
        say!("{USAGE}");
        return Ok(());
    };
    match (wanted.upgrade, wanted.batch, wanted.rest.as_slice()) {
        (true, _, [file]) => upgrade(&wanted, Path::new(file)),
        (false, true, [file, name, password]) => set(&wanted, Path::new(file), name, password),
        (false, false, [file, name]) if wanted.delete => delete(Path::new(file), name),
        (false, false, [file, name]) => {
            let password = match ask::is_interactive() {
                true => ask::passphrase("Password:", Some("for the password file"))?,
                false => ask::one_password(None)?,
            };
            set(&wanted, Path::new(file), name, &password)
        }
        _ => Err(failed(format!("the arguments are not as they should be.\n\n{USAGE}"))),
    }
}

fn hash(wanted: &Wanted, password: &str) -> PasswordHash {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).expect("the kernel's random generator");
    let short: [u8; 12] = salt[..12].try_into().expect("twelve of sixteen");
    match wanted.kind.as_str() {
        "sha512" => PasswordHash::sha512(password.as_bytes(), short),
        "sha512-pbkdf2" => PasswordHash::pbkdf2(password.as_bytes(), wanted.iterations, short),
        _ => PasswordHash::new(password.as_bytes(), Cost::Human, salt),
    }
}

fn check(name: &str) -> Result<(), Failure> {
    match name {
        "" => Err(failed("Empty username.")),
        _ if name.contains(':') => Err(failed("Username must not contain the ':' character.")),
        _ if name.len() > 65_535 || name.contains(char::is_control) => Err(failed("this is no username.")),
        _ => Ok(()),
    }
}

/// Every line, the comments too: what is there stays as it is.
fn lines(file: &Path) -> Result<Vec<String>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| failed(format!("Unable to open password file {}: {error}.", file.display())))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn write(file: &Path, lines: &[String]) -> Result<(), Failure> {
    let text: Zeroizing<String> = Zeroizing::new(lines.iter().map(|line| format!("{line}\n")).collect());
    let place = if file.parent().is_some_and(|parent| parent.as_os_str().is_empty()) {
        PathBuf::from(".").join(file)
    } else {
        file.to_owned()
    };
    // What a link names is what is meant, and the link stays.
    let place = place.canonicalize().unwrap_or(place);
    match pki::replace(&place, text.as_bytes(), 0o600) {
        // A file that is mounted by itself, as containers have it, cannot be replaced: it is written where it is.
        Err(FileError::Io { error, .. }) if error.kind() == ErrorKind::ResourceBusy => rewrite(&place, text.as_bytes())
            .map_err(|error| failed(format!("Unable to write password file {}: {error}.", place.display()))),
        replaced => replaced.map_err(failed),
    }
}

/// Not atomic: a crash in the middle may leave some of it.
fn rewrite(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut open = OpenOptions::new().write(true).open(file)?;
    open.write_all(bytes)?;
    open.set_len(bytes.len() as u64)?;
    open.sync_all()
}

fn is_of(line: &str, name: &str) -> bool {
    line.split_once(':').is_some_and(|(known, _)| known == name)
}

fn set(wanted: &Wanted, file: &Path, name: &str, password: &str) -> Result<(), Failure> {
    check(name)?;
    if password.is_empty() {
        return Err(failed("Empty password."));
    }
    let mut all = if wanted.create { Vec::new() } else { lines(file)? };
    let line = format!("{name}:{}", hash(wanted, password));
    match all.iter_mut().find(|known| is_of(known, name)) {
        Some(known) => *known = line,
        None => all.push(line),
    }
    write(file, &all)
}

fn delete(file: &Path, name: &str) -> Result<(), Failure> {
    check(name)?;
    let mut all = lines(file)?;
    let before = all.len();
    all.retain(|line| !is_of(line, name));
    if all.len() == before {
        return Err(failed(format!("User {name} not found in password file.")));
    }
    write(file, &all)
}

/// Hashes what is plain; what is a hash already stays.
fn upgrade(wanted: &Wanted, file: &Path) -> Result<(), Failure> {
    let mut all = lines(file)?;
    for line in &mut all {
        let Some((name, password)) = line.split_once(':').filter(|_| !line.starts_with('#')) else { continue };
        if PasswordHash::parse(password).is_err() {
            *line = format!("{name}:{}", hash(wanted, password));
        }
    }
    write(file, &all)
}
