//! Mosquitto's own plugins whose work is built in here: taken by their files' names, as if their options were the
//! configuration's.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::apply::Draft;
use super::door::Security;
use super::{Line, Wrong};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Plugin {
    PasswordFile,
    AclFile,
    PersistSqlite,
    SparkplugAware,
}

impl Plugin {
    /// By the name of its file, wherever that lies; `None`: it is not built in here.
    fn of(path: &str) -> Result<Option<Plugin>, Wrong> {
        let file = Path::new(path.trim()).file_stem().and_then(OsStr::to_str).unwrap_or_default();
        Ok(Some(match file.strip_prefix("mosquitto_").unwrap_or(file) {
            "password_file" => Plugin::PasswordFile,
            "acl_file" => Plugin::AclFile,
            "persist_sqlite" => Plugin::PersistSqlite,
            "sparkplug_aware" => Plugin::SparkplugAware,
            "dynamic_security" => {
                return Err(Wrong::new(
                    "dynamic security is not there yet: password_file and acl_file, or a site with `lockgate client`, say who may do what.",
                ));
            }
            _ => return Ok(None),
        }))
    }

    /// Whether it does something for the whole broker, whoever uses it.
    pub(super) fn is_global(self) -> bool {
        matches!(self, Plugin::PersistSqlite | Plugin::SparkplugAware)
    }

    /// As it calls itself.
    pub(super) fn name(self) -> &'static str {
        match self {
            Plugin::PasswordFile => "password-file",
            Plugin::AclFile => "acl-file",
            Plugin::PersistSqlite => "persist-sqlite",
            Plugin::SparkplugAware => "sparkplug-aware",
        }
    }
}

/// The plugin that was named last: the options behind it are its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Named {
    /// Everybody's, or one listener's by `per_listener_settings`.
    Here(Plugin),
    /// That of `plugin_load` in this place: it is for the listeners that use it.
    Loaded(usize),
}

/// `plugin_load NAME PATH`, and the file that its options name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Loaded {
    pub(super) name: String,
    pub(super) plugin: Plugin,
    pub(super) file: Option<PathBuf>,
}

impl Draft {
    /// What a line about a known plugin says; `None` for all others.
    pub(super) fn plugin_line(&mut self, line: &Line<'_>) -> Option<Result<(), Wrong>> {
        match line.name {
            "plugin" | "auth_plugin" | "global_plugin" => self.begin_plugin(line.value).transpose(),
            "plugin_load" => self.load_plugin(line.value).transpose(),
            "plugin_use" => Some(self.use_plugin(line.value)),
            name => {
                let option = name.strip_prefix("plugin_opt_").or_else(|| name.strip_prefix("auth_opt_"))?;
                let named = self.plugin?;
                Some(self.plugin_option(named, option, line))
            }
        }
    }

    /// `None`: nothing is known of it.
    fn begin_plugin(&mut self, path: &str) -> Result<Option<()>, Wrong> {
        self.plugin = None;
        let Some(plugin) = Plugin::of(path)? else { return Ok(None) };
        if self.everybodys.contains(&plugin) && !self.per_listener {
            return Err(Wrong::new(
                "one plugin of a kind is for all listeners here: name the second's file by per_listener_settings, or by \
                 plugin_load and plugin_use.",
            ));
        }
        self.everybodys.push(plugin);
        self.plugin = Some(Named::Here(plugin));
        self.add_plugin(plugin);
        Ok(Some(()))
    }

    fn load_plugin(&mut self, value: &str) -> Result<Option<()>, Wrong> {
        self.plugin = None;
        let Some((name, path)) = value.split_once([' ', '\t']) else {
            return Err(Wrong::new("plugin_load needs a name and the plugin's file."));
        };
        let Some(plugin) = Plugin::of(path)? else { return Ok(None) };
        if self.loaded.iter().any(|loaded| loaded.name == name) {
            return Err(Wrong::new(format!("There is a plugin {name} already.")));
        }
        self.plugin = Some(Named::Loaded(self.loaded.len()));
        self.loaded.push(Loaded { name: name.to_owned(), plugin, file: None });
        self.add_plugin(plugin);
        Ok(Some(()))
    }

    fn use_plugin(&mut self, name: &str) -> Result<(), Wrong> {
        let Some(at) = self.current else {
            return Err(Wrong::new("The 'plugin_use' option needs a listener before it."));
        };
        let Some(loaded) = self.loaded.iter().position(|loaded| loaded.name == name) else {
            return Err(Wrong::new(format!("No plugin_load before this line names a plugin {name}.")));
        };
        let plugin = self.loaded[loaded].plugin;
        let uses = &mut self.doors[at].uses;
        if uses.iter().any(|used| self.loaded[*used].plugin == plugin) {
            return Err(Wrong::new("one plugin of a kind is for a listener here: it goes by one file."));
        }
        uses.push(loaded);
        Ok(())
    }

    fn add_plugin(&mut self, plugin: Plugin) {
        self.plugins.push(plugin);
        // It refuses to go with `persistence true`; the store is the same either way.
        self.persistence |= plugin == Plugin::PersistSqlite;
        self.limits.sparkplug_aware |= plugin == Plugin::SparkplugAware;
    }

    fn plugin_option(&mut self, named: Named, option: &str, line: &Line<'_>) -> Result<(), Wrong> {
        let plugin = match named {
            Named::Here(plugin) => plugin,
            Named::Loaded(at) => self.loaded[at].plugin,
        };
        match (plugin, option) {
            (Plugin::PasswordFile, "password_file") | (Plugin::AclFile, "acl_file") => {
                let path = line.path()?;
                match (named, plugin) {
                    (Named::Loaded(at), _) => self.loaded[at].file = Some(path),
                    (Named::Here(_), Plugin::PasswordFile) => self.security(line)?.passwords = Some(path),
                    (Named::Here(_), _) => self.security(line)?.acl = Some(path),
                }
            }
            (Plugin::PersistSqlite, "db_file") => {
                let folder = line.path()?.parent().map(Path::to_path_buf);
                self.location = folder.filter(|folder| !folder.as_os_str().is_empty()).or(self.location.take());
            }
            (Plugin::PersistSqlite, "sync" | "flush_period" | "page_size") => {
                self.notices
                    .push(format!("{} has no effect here: what is acknowledged is on the disk at once", line.name));
            }
            _ => return Err(Wrong::new(format!("Unknown configuration variable '{}'", line.name))),
        }
        Ok(())
    }
}

/// What holds for a listener that uses plugins: their files in place of everybody's, of which there may then be none.
pub(super) fn with_used(security: &Security, used: &[&Loaded]) -> Result<Security, Wrong> {
    let mut all = security.clone();
    for Loaded { name, plugin, file } in used {
        let place = match plugin {
            Plugin::PasswordFile => &mut all.passwords,
            Plugin::AclFile => &mut all.acl,
            Plugin::PersistSqlite | Plugin::SparkplugAware => continue,
        };
        let Some(file) = file else {
            return Err(Wrong::new(format!("The plugin {name} has no {}: name its file.", plugin.name())));
        };
        if let Some(other) = place.replace(file.clone()) {
            let (file, other) = (file.display(), other.display());
            return Err(Wrong::new(format!(
                "a listener goes by one file of a kind here: {file} of the plugin {name}, or {other}."
            )));
        }
    }
    Ok(all)
}
