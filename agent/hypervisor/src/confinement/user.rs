//! Whose processes QEMUs are: never root's, and if the host has enough users to give, each guest's its own.

use std::{collections::BTreeSet, fs, io, ops::RangeInclusive, os::unix::fs::MetadataExt, path::Path, str::FromStr};

use nix::unistd::{Gid, Uid, User};

/// Where a host reserves users for a user, see subuid(5).
const RESERVED: &str = "/etc/subuid";

/// Who an operator wants QEMUs to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QemuUser {
    /// The user of this name; if `/etc/subuid` reserves users for it, each guest has one of those.
    Named(String),
    /// One user for all guests.
    One {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A user of this range for each guest, and the group with its number.
    Each(RangeInclusive<u32>),
}

/// A user that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a user QEMU can run as: give a name, UID, UID:GID, or FIRST-LAST for a user to each guest; never root"
)]
pub struct InvalidQemuUser(String);

impl FromStr for QemuUser {
    type Err = InvalidQemuUser;

    fn from_str(text: &str) -> Result<Self, InvalidQemuUser> {
        let invalid = || InvalidQemuUser(text.to_owned());
        // The greatest number stands for "none" in the kernel's calls.
        let number = |text: &str| text.parse().ok().filter(|id| (1..u32::MAX).contains(id));
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            if let Some((first, last)) = text.split_once('-') {
                let (first, last) = (number(first).ok_or_else(invalid)?, number(last).ok_or_else(invalid)?);
                return if first <= last { Ok(Self::Each(first..=last)) } else { Err(invalid()) };
            }
            let (uid, gid) = text.split_once(':').unwrap_or((text, text));
            return Ok(Self::One { uid: number(uid).ok_or_else(invalid)?, gid: number(gid).ok_or_else(invalid)? });
        }
        let usual = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-' | '.');
        if text.is_empty() || text == "root" || !text.chars().all(usual) {
            return Err(invalid());
        }
        Ok(Self::Named(text.to_owned()))
    }
}

/// The users there are for guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Users {
    uids: RangeInclusive<u32>,
    /// The group of all; else each has the one with its number.
    gid: Option<u32>,
}

impl Users {
    /// What the host knows of that user.
    pub(super) fn find(user: &QemuUser) -> io::Result<Self> {
        Ok(match user {
            QemuUser::One { uid, gid } => Self { uids: *uid..=*uid, gid: Some(*gid) },
            QemuUser::Each(uids) => Self { uids: uids.clone(), gid: None },
            QemuUser::Named(name) => {
                let found = User::from_name(name)?.ok_or_else(|| io::Error::other("this host has no such user"))?;
                let (uid, gid) = (found.uid.as_raw(), found.gid.as_raw());
                if uid == 0 {
                    return Err(io::Error::other("it is root by another name"));
                }
                match reserved(&fs::read_to_string(RESERVED).unwrap_or_default(), name) {
                    Some(uids) => Self { uids, gid: None },
                    None => Self { uids: uid..=uid, gid: Some(gid) },
                }
            }
        })
    }

    /// Whether each guest can have its own.
    pub(super) fn are_several(&self) -> bool {
        self.uids.start() != self.uids.end()
    }

    /// Some user, for a QEMU that is no guest's.
    pub(super) fn any(&self) -> (Uid, Gid) {
        self.with(*self.uids.end())
    }

    /// The user for the guest of that run directory: the one it had, or one that no other directory beside it belongs to.
    pub(super) fn choose(&self, run_dir: &Path) -> io::Result<(Uid, Gid)> {
        if !self.are_several() {
            return Ok(self.any());
        }
        let mut taken = BTreeSet::new();
        let mut before = None;
        if let Some(beside) = run_dir.parent().filter(|parent| parent.exists()) {
            for entry in fs::read_dir(beside)? {
                let entry = entry?;
                let owner = entry.metadata()?.uid();
                if entry.path() == run_dir {
                    before = Some(owner);
                } else {
                    taken.insert(owner);
                }
            }
        }
        let free = |uid: &u32| self.uids.contains(uid) && !taken.contains(uid);
        let uid = before.filter(free).or_else(|| self.uids.clone().find(free));
        let none =
            || io::Error::other(format!("all users from {} to {} have a guest", self.uids.start(), self.uids.end()));
        Ok(self.with(uid.ok_or_else(none)?))
    }

    fn with(&self, uid: u32) -> (Uid, Gid) {
        (Uid::from_raw(uid), Gid::from_raw(self.gid.unwrap_or(uid)))
    }
}

/// The users reserved for `name` in a file like subuid(5).
fn reserved(text: &str, name: &str) -> Option<RangeInclusive<u32>> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        let first: u32 = fields.next()?.trim().parse().ok()?;
        let count: u32 = fields.next()?.trim().parse().ok()?;
        let last = first.checked_add(count.checked_sub(1)?)?;
        (first > 0 && last < u32::MAX).then_some(first..=last)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_names_numbers_or_ranges_and_never_root() {
        assert_eq!("throughline-qemu".parse(), Ok(QemuUser::Named("throughline-qemu".to_owned())));
        assert_eq!("107".parse(), Ok(QemuUser::One { uid: 107, gid: 107 }));
        assert_eq!("107:36".parse(), Ok(QemuUser::One { uid: 107, gid: 36 }));
        assert_eq!("7000-7999".parse(), Ok(QemuUser::Each(7000..=7999)));
        for bad in ["", "root", "0", "0:0", "107:0", "0-9", "9-7", "7-", "4294967295", "a b", "a:b", "7x"] {
            assert!(bad.parse::<QemuUser>().is_err(), "{bad:?}");
        }
        let root = Users::find(&QemuUser::Named("nobody-of-that-name".to_owned())).unwrap_err();
        assert!(root.to_string().contains("no such user"), "{root}");
    }

    #[test]
    fn reserved_users_are_read_as_the_host_writes_them() {
        let file = "root:100000:65536\nthroughline-qemu:700000:65536\nodd:0:5\nempty:7:0\n";
        assert_eq!(reserved(file, "throughline-qemu"), Some(700_000..=765_535));
        for none in ["throughline", "odd", "empty", "nobody"] {
            assert_eq!(reserved(file, none), None, "{none}");
        }
    }

    #[test]
    fn each_guest_has_a_user_of_its_own_and_keeps_it() {
        let root = std::env::temp_dir().join(format!("tl-users-{}", std::process::id()));
        let users = Users { uids: 61_001..=61_002, gid: None };
        let take = |guest: &str| {
            let dir = root.join(guest);
            let (uid, gid) = users.choose(&dir)?;
            fs::create_dir_all(&dir)?;
            nix::unistd::chown(&dir, Some(uid), Some(gid))?;
            Ok::<_, io::Error>(uid.as_raw())
        };
        let first = (take("a").unwrap(), take("b").unwrap());
        let again = (take("a").unwrap(), take("b").unwrap());
        let third = take("c");
        fs::remove_dir(root.join("a")).unwrap();
        let freed = take("c").unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(first, (61_001, 61_002));
        assert_eq!(again, first);
        assert!(third.unwrap_err().to_string().contains("have a guest"));
        assert_eq!(freed, 61_001);
    }
}
