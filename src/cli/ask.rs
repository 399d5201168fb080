//! Questions at a terminal. Without one, nothing is ever asked.

use std::io::{IsTerminal, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use inquire::validator::Validation;
use zeroize::Zeroizing;

use super::Failure;

static SILENT: AtomicBool = AtomicBool::new(false);

/// Something turns while it lasts, where output is a terminal.
pub(super) fn while_waiting<T>(what: &'static str, work: impl FnOnce() -> T) -> T {
    let bar = indicatif::ProgressBar::new_spinner().with_message(what);
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let done = work();
    bar.finish_and_clear();
    done
}

/// From now on nobody is asked: a broker runs on whether somebody sits at its terminal or not.
pub(super) fn no_more() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Whether somebody is there to answer.
pub(super) fn is_interactive() -> bool {
    !SILENT.load(Ordering::Relaxed) && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

fn aborted(error: inquire::InquireError) -> Failure {
    Failure::new(format!("nothing was changed: {error}"))
}

pub(super) fn text(question: &str, default: &str, help: &str) -> Result<String, Failure> {
    inquire::Text::new(question).with_default(default).with_help_message(help).prompt().map_err(aborted)
}

/// Words separated by spaces, each of which `check` has to like before the next question comes.
pub(super) fn words(
    question: &str,
    default: &str,
    help: &str,
    check: impl Fn(&str) -> Result<(), String> + Clone + 'static,
) -> Result<String, Failure> {
    let validator = move |text: &str| {
        Ok(match text.split_whitespace().find_map(|word| check(word).err()) {
            Some(problem) => Validation::Invalid(problem.into()),
            None => Validation::Valid,
        })
    };
    let prompt = inquire::Text::new(question).with_help_message(help).with_validator(validator);
    let prompt = if default.is_empty() { prompt } else { prompt.with_default(default) };
    prompt.prompt().map_err(aborted)
}

pub(super) fn confirm(question: &str, default: bool, help: &str) -> Result<bool, Failure> {
    inquire::Confirm::new(question).with_default(default).with_help_message(help).prompt().map_err(aborted)
}

/// Asks for a new password twice; empty: one is to be made.
pub(super) fn new_password(name: &str) -> Result<Option<Zeroizing<String>>, Failure> {
    let question = format!("Password for {name}:");
    let password = inquire::Password::new(&question)
        .with_help_message("empty: one is generated")
        .with_custom_confirmation_message("Again:")
        .prompt()
        .map_err(aborted)?;
    Ok((!password.is_empty()).then(|| Zeroizing::new(password)))
}

/// A passphrase; a new one, of which `new` says what is lost without it, twice.
pub(super) fn passphrase(question: &str, new: Option<&str>) -> Result<Zeroizing<String>, Failure> {
    let prompt = inquire::Password::new(question);
    let prompt = match new {
        Some(help) => prompt.with_custom_confirmation_message("Again:").with_help_message(help),
        None => prompt.without_confirmation(),
    };
    let passphrase = Zeroizing::new(prompt.prompt().map_err(aborted)?);
    match passphrase.is_empty() {
        true => Err(Failure::new("nothing was changed: an empty passphrase protects nothing")),
        false => Ok(passphrase),
    }
}

/// The passphrase of a new key, from a file or asked for; `option` names the file on the command line.
pub(super) fn new_passphrase(file: Option<&Path>, of: &str, option: &str) -> Result<Zeroizing<String>, Failure> {
    match file {
        Some(file) => one_password(Some(file)),
        None if is_interactive() => {
            passphrase(&format!("New passphrase of {of}:"), Some("without it nobody issues a certificate again"))
        }
        None => Err(Failure::configuration(format!("there is no terminal to ask at: use {option} FILE"))),
    }
}

/// Passwords by line, from standard input or a file.
pub(super) fn password_lines(file: Option<&Path>) -> Result<Vec<Zeroizing<String>>, Failure> {
    let text = match file {
        Some(path) => Zeroizing::new(
            std::fs::read_to_string(path)
                .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?,
        ),
        None => {
            let mut text = Zeroizing::new(String::new());
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
            text
        }
    };
    Ok(text.lines().map(|line| Zeroizing::new(line.to_owned())).collect())
}

/// The one password on standard input or in a file.
pub(super) fn one_password(file: Option<&Path>) -> Result<Zeroizing<String>, Failure> {
    let from = file.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    match password_lines(file)?.into_iter().next() {
        Some(password) if !password.is_empty() => Ok(password),
        _ => Err(Failure::new(format!("the first line of {from} is empty: a password is expected there"))),
    }
}
