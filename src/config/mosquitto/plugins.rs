//! Mosquitto's own plugins whose work is built in here: taken by their files' names, as if their options were the
//! configuration's.

use std::path::Path;

use super::apply::Draft;
use super::{Line, Wrong};

/// A plugin that is named last: the options behind it are its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Plugin {
    PasswordFile,
    AclFile,
    PersistSqlite,
}

impl Plugin {
    /// By the name of its file, wherever that lies.
    fn of(path: &str) -> Option<Plugin> {
        let file = Path::new(path.trim()).file_stem()?.to_str()?;
        match file.strip_prefix("mosquitto_").unwrap_or(file) {
            "password_file" => Some(Plugin::PasswordFile),
            "acl_file" => Some(Plugin::AclFile),
            "persist_sqlite" => Some(Plugin::PersistSqlite),
            _ => None,
        }
    }
}

impl Draft {
    /// What a line about a known plugin says; `None` for all others.
    pub(super) fn plugin_line(&mut self, line: &Line<'_>) -> Option<Result<(), Wrong>> {
        match line.name {
            "plugin" | "auth_plugin" | "global_plugin" => self.begin_plugin(line.value),
            name => {
                let option = name.strip_prefix("plugin_opt_").or_else(|| name.strip_prefix("auth_opt_"))?;
                let plugin = self.plugin?;
                Some(self.plugin_option(plugin, option, line))
            }
        }
    }

    fn begin_plugin(&mut self, path: &str) -> Option<Result<(), Wrong>> {
        self.plugin = Plugin::of(path);
        if let Some(plugin) = self.plugin {
            if self.plugins.contains(&plugin) && !self.per_listener {
                return Some(Err(Wrong::new(
                    "one plugin of a kind is for all listeners here: name the second's file by per_listener_settings.",
                )));
            }
            self.plugins.push(plugin);
        }
        if path.contains("dynamic_security") {
            return Some(Err(Wrong::new(
                "dynamic security is not there yet: password_file and acl_file, or a site with `lockgate client`, say who may do what.",
            )));
        }
        // It refuses to go with `persistence true`; the store is the same either way.
        self.persistence |= self.plugin == Some(Plugin::PersistSqlite);
        self.plugin.map(|_| Ok(()))
    }

    fn plugin_option(&mut self, plugin: Plugin, option: &str, line: &Line<'_>) -> Result<(), Wrong> {
        match (plugin, option) {
            (Plugin::PasswordFile, "password_file") => self.security(line)?.passwords = Some(line.path()?),
            (Plugin::AclFile, "acl_file") => self.security(line)?.acl = Some(line.path()?),
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
