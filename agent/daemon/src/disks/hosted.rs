//! The store as the agent's tasks use it: off their threads, for it blocks.

use std::{fs::File, sync::Arc, time::Duration};

use throughline_cutover::{Disk, Failure, GuestName, GuestSpec};
use throughline_wire::v1;
use tracing::{info, warn};

use super::{DiskError, Made, Store};
use crate::host::Host;

/// How often.
const LOOK_FOR_OLD_PARTS: Duration = Duration::from_secs(60 * 60);

/// A disk's files, open for its guest's QEMU.
#[derive(Debug)]
pub struct Opened {
    /// Its own.
    pub file: File,
    /// What it is over.
    pub image: Option<File>,
}

/// What becomes of what came of a guest that stayed where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfinished {
    /// The next try goes on with it, as far as it is whole.
    PutAside {
        /// Its QEMU here did not end in order.
        ended_badly: bool,
    },
    /// None is expected.
    Discard,
}

impl Host {
    /// Does something with this host's disks.
    ///
    /// # Errors
    /// `DISKS_NOT_KEPT` on a host that runs no guests; else those of `job`.
    pub async fn with_disks<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Store) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, Failure> {
        let Some(store) = self.disks.clone() else {
            return Err(Failure::new("DISKS_NOT_KEPT", format!("{} runs no guests and keeps no disks", self.name())));
        };
        let done = tokio::task::spawn_blocking(move || job(&store)).await;
        done.map_err(|panicked| Failure::new("DISK_STORE", panicked.to_string()))?.map_err(Failure::from)
    }

    /// The disks of a guest that boots here, open for its QEMU: made if they are not there.
    ///
    /// # Errors
    /// The store's; what was made before stays, for the guest's next start.
    pub async fn disks_to_boot(&self, spec: &GuestSpec) -> Result<Vec<Opened>, Failure> {
        if spec.disks.is_empty() {
            return Ok(Vec::new());
        }
        let (guest, disks) = (spec.name.clone(), spec.disks.clone());
        self.with_disks(move |store| disks.iter().map(|disk| to_boot(store, &guest, disk)).collect()).await
    }

    /// What the destination of a guest is told of each of its disks, in the guest's order; see [`Store::used`], [`Store::prove`] and
    /// [`Store::image_of`]. `flatten`: those that are over an image are brought whole.
    ///
    /// # Errors
    /// The store's.
    pub async fn disks_here(&self, spec: &GuestSpec, flatten: bool) -> Result<Vec<v1::DiskHere>, Failure> {
        if spec.disks.is_empty() {
            return Ok(Vec::new());
        }
        let (guest, disks) = (spec.name.clone(), spec.disks.clone());
        let here = move |store: &Store, disk: &Disk| {
            let mut here = v1::DiskHere {
                name: disk.name.to_string(),
                used_bytes: store.used(&guest, disk)?,
                place_proof: store.prove(&guest, disk)?,
                ..Default::default()
            };
            match store.image_of(&guest, disk)? {
                Some(_) if flatten && disk.goes_along() => here.used_bytes += store.image_takes(&guest, disk),
                Some(sum) => here.image_sum = sum.to_vec(),
                None => {}
            }
            Ok(here)
        };
        self.with_disks(move |store| disks.iter().map(|disk| here(store, disk)).collect()).await
    }

    /// What came of a guest's disks is this host's to keep: its guest is. Does nothing for what is kept already.
    ///
    /// # Errors
    /// The store's; to be called again then.
    pub async fn keep_disks(&self, spec: &GuestSpec) -> Result<(), Failure> {
        if spec.disks.is_empty() {
            return Ok(());
        }
        let (guest, disks) = (spec.name.clone(), spec.disks.clone());
        self.with_disks(move |store| store.keep(&guest, &disks)).await
    }

    /// What came of a guest's disks is nobody's: its guest stays where it is. Its QEMU here has ended.
    ///
    /// # Errors
    /// The store's; to be called again then.
    pub async fn leave_disks(&self, spec: &GuestSpec, fate: Unfinished) -> Result<(), Failure> {
        if spec.disks.is_empty() {
            return Ok(());
        }
        let guest = spec.name.clone();
        self.with_disks(move |store| match fate {
            Unfinished::Discard => store.discard_incoming(&guest),
            Unfinished::PutAside { ended_badly } => store.put_aside(&guest, ended_badly),
        })
        .await
    }

    /// Removes parts that nobody comes back for, as long as this agent runs.
    pub async fn remove_old_parts(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_FOR_OLD_PARTS).await;
            if self.disks.is_some()
                && let Err(failure) = self.with_disks(Store::remove_old_parts).await
            {
                warn!(%failure, "parts of disks that came and were not wanted any more take room");
            }
        }
    }

    /// What a guest that has left had here of disks is gone, or it is told that it is not: nobody waits for that.
    pub async fn clear_out_disks(&self, spec: &GuestSpec) {
        if !spec.disks.is_empty()
            && let Err(failure) = self.remove_disks(&spec.name).await
        {
            warn!(guest = %spec.name, %failure, "what it left of its disks stays here until this agent is restarted");
        }
    }

    /// What a guest that has left had here of disks is gone. Its QEMU has ended.
    ///
    /// # Errors
    /// The store's; to be called again then.
    pub async fn remove_disks(&self, guest: &GuestName) -> Result<(), Failure> {
        let guest = guest.clone();
        self.with_disks(move |store| store.remove(&guest)).await
    }

    /// The disks of a guest that is deleted with them are gone, here and on shared storage. Its QEMU has ended.
    ///
    /// # Errors
    /// The store's; to be called again then.
    pub async fn delete_disks(&self, guest: &GuestName) -> Result<(), Failure> {
        let guest = guest.clone();
        self.with_disks(move |store| store.delete(&guest)).await
    }
}

fn to_boot(store: &Store, guest: &GuestName, disk: &Disk) -> Result<Opened, DiskError> {
    if store.create(guest, disk)? == Made::Found {
        info!(%guest, disk = %disk.name, "a disk that was kept is used again, as it is");
    }
    let file = store.open_disk(guest, disk)?;
    Ok(Opened { image: store.open_image(guest, disk, &file)?, file })
}
