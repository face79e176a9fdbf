//! Who the tools are: never root.

use std::io;

use nix::unistd::{Gid, Uid, User};
use throughline_hypervisor::QemuUser;

/// A user and the only group it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolUser {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
}

impl ToolUser {
    /// The one that guests' QEMUs share, or of several the last, which a guest gets only when all others have one; if users are
    /// reserved for a named one, itself, which no guest gets.
    ///
    /// # Errors
    /// If this host does not have that user, or it is root.
    pub fn of(user: &QemuUser) -> io::Result<Self> {
        let (uid, gid) = match user {
            QemuUser::One { uid, gid } => (*uid, *gid),
            QemuUser::Each(users) => (*users.end(), *users.end()),
            QemuUser::Named(name) => {
                let found = User::from_name(name)?.ok_or_else(|| io::Error::other("this host has no such user"))?;
                (found.uid.as_raw(), found.gid.as_raw())
            }
        };
        if uid == 0 {
            return Err(io::Error::other("it is root by another name"));
        }
        Ok(Self { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_run_as_one_of_qemus_users_and_never_as_root() {
        let of = |text: &str| ToolUser::of(&text.parse().unwrap()).map(|user| (user.uid.as_raw(), user.gid.as_raw()));
        assert_eq!(of("107:36").unwrap(), (107, 36));
        assert_eq!(of("7000-7999").unwrap(), (7999, 7999));
        assert_eq!(of("nobody").unwrap().0, 65_534);
        assert!(of("nobody-of-that-name").is_err());
        assert!(ToolUser::of(&QemuUser::Named("root".to_owned())).is_err());
    }
}
