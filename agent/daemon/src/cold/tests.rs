//! Both ends of a disk's copying, with each other, and with what has no business to be said.

use std::{
    fs::{File, remove_file},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::PathBuf,
    thread,
};

use throughline_wire::v1::{
    DiskData, DiskFromDestination, DiskSent, DiskSums, DiskWhole, disk_data::Piece, disk_from_source::Message,
};
use tokio::sync::mpsc;

use super::{
    compare::{PIECE, REGION, SUM},
    receive::{ReceiveError, Receiving},
    send::{SendError, Sending},
};

const LENGTH: u64 = 5 * REGION + 4096;

struct Scratch(PathBuf, File);

impl Scratch {
    fn new(name: &str, length: u64) -> Self {
        let path = std::env::temp_dir().join(format!("throughline-cold-{}-{name}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        Self(path, file)
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = remove_file(&self.0);
    }
}

/// Copies one to the other; gives what counted as over, and the bytes of data that were sent.
fn copy(from: &Scratch, to: &Scratch) -> (u64, usize) {
    let (say, mut said) = mpsc::channel(4);
    let (pass, heard) = mpsc::channel(4);
    let (answer, mut answers) = mpsc::channel::<Result<DiskFromDestination, tonic::Status>>(4);
    let (tell, told) = mpsc::channel(4);
    let length = from.1.metadata().unwrap().len();
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut over = 0;
            let sending = Sending { file: &from.1, length, bandwidth: u64::MAX, to: say, from: told };
            sending.run(|bytes| over += bytes).map(|()| over)
        });
        let receiving = scope.spawn(|| Receiving { file: &to.1, length, to: answer, from: heard }.run());
        let sent = scope.spawn(move || {
            let mut data = 0;
            while let Some(message) = said.blocking_recv() {
                if let Message::Data(DiskData { piece: Some(Piece::Data(piece)), .. }) = &message {
                    data += piece.len();
                }
                if pass.blocking_send(message).is_err() {
                    break;
                }
            }
            data
        });
        while let Some(answer) = answers.blocking_recv() {
            if tell.blocking_send(answer.unwrap().sums.unwrap()).is_err() {
                break;
            }
        }
        drop(tell);
        receiving.join().unwrap().unwrap();
        (sending.join().unwrap().unwrap(), sent.join().unwrap())
    })
}

#[test]
fn a_file_comes_as_it_was_and_sparse() {
    let (from, to) = (Scratch::new("whole-a", LENGTH), Scratch::new("whole-b", 0));
    from.1.write_all_at(b"first", 0).unwrap();
    from.1.write_all_at(&vec![7; REGION as usize], 2 * REGION - 100).unwrap();
    from.1.write_all_at(b"last", LENGTH - 4).unwrap();
    let (over, sent) = copy(&from, &to);
    assert_eq!(to.content(), from.content());
    assert_eq!(over, 3 * REGION + 4096, "regions with data: 0, 1, 2 and the last");
    let pieces = sent / PIECE;
    assert!((33..=36).contains(&pieces), "zeroes are not sent: {pieces} pieces");
    let room = to.1.metadata().unwrap().blocks() * 512;
    assert!(room < 2 * REGION, "nor do they take room: {room}");
}

#[test]
fn a_part_is_gone_on_with_and_what_is_wrong_in_it_is_put_right() {
    let (from, to) = (Scratch::new("part-a", LENGTH), Scratch::new("part-b", LENGTH + 99));
    from.1.write_all_at(&vec![3; LENGTH as usize], 0).unwrap();
    from.1.write_all_at(&vec![0; PIECE], 3 * REGION).unwrap();
    to.1.write_all_at(&vec![3; LENGTH as usize], 0).unwrap();
    to.1.write_all_at(b"rotten", REGION + 5).unwrap();
    let (over, sent) = copy(&from, &to);
    assert_eq!(to.content(), from.content());
    assert_eq!(over, LENGTH);
    assert!(sent < 2 * REGION as usize, "only what differs: {sent}");
    assert_eq!(copy(&from, &to), (LENGTH, 0), "and nothing when nothing does");
}

fn receive(messages: Vec<Message>) -> Result<(), ReceiveError> {
    let to = Scratch::new(&format!("nonsense-{:?}", thread::current().id()), 0);
    let (say, heard) = mpsc::channel(messages.len().max(1));
    let (answer, _answers) = mpsc::channel(16);
    messages.into_iter().for_each(|message| say.try_send(message).unwrap());
    drop(say);
    Receiving { file: &to.1, length: LENGTH, to: answer, from: heard }.run()
}

#[test]
fn a_source_that_sends_what_is_not_in_the_file_is_not_heard() {
    let data = |offset, piece| Message::Data(DiskData { offset, piece });
    let bytes = |count: usize| Some(Piece::Data(vec![1; count]));
    let nonsense = [
        data(LENGTH - 1, bytes(2)),
        data(u64::MAX, bytes(2)),
        data(0, bytes(0)),
        data(0, bytes((256 << 10) + 1)),
        data(0, None),
        data(0, Some(Piece::Zeroes(0))),
        data(1, Some(Piece::Zeroes(u64::MAX))),
        data(1, Some(Piece::Zeroes(LENGTH))),
    ];
    for message in nonsense {
        let refused = receive(vec![message.clone()]);
        assert!(matches!(refused, Err(ReceiveError::Nonsense)), "{message:?}: {refused:?}");
    }
    let whole = || Message::Whole(DiskWhole {});
    let unseen = receive(vec![data(0, bytes(2)), whole()]);
    assert!(matches!(unseen, Err(ReceiveError::Nonsense)), "what was not compared is not the same: {unseen:?}");
    assert!(matches!(receive(vec![]), Err(ReceiveError::Broken)));
    receive(vec![data(0, bytes(2)), Message::Sent(DiskSent {}), whole()]).unwrap();
}

fn send(answers: Vec<DiskSums>) -> Result<(), SendError> {
    let from = Scratch::new(&format!("answers-{:?}", thread::current().id()), LENGTH);
    let (say, _said) = mpsc::channel(4096);
    let (tell, told) = mpsc::channel(answers.len().max(1));
    answers.into_iter().for_each(|sums| tell.try_send(sums).unwrap());
    drop(tell);
    Sending { file: &from.1, length: LENGTH, bandwidth: u64::MAX, to: say, from: told }.run(|_| ())
}

#[test]
fn a_destination_that_compares_otherwise_is_not_believed() {
    let sums = |first, count: usize, last| DiskSums { first, sums: vec![1; count * SUM], last };
    let nonsense = [
        vec![sums(1, 5, true)],
        vec![sums(0, 5, true)],
        vec![sums(0, 7, true)],
        vec![sums(0, 3, false), sums(2, 3, true)],
        vec![DiskSums { first: 0, sums: vec![1; SUM + 1], last: false }],
    ];
    for answers in nonsense {
        let refused = send(answers.clone());
        assert!(matches!(refused, Err(SendError::Nonsense)), "{answers:?}: {refused:?}");
    }
    assert!(matches!(send(vec![sums(0, 3, false)]), Err(SendError::Broken)));
    let never = send(vec![sums(0, 6, true); 4]);
    assert!(matches!(never, Err(SendError::Differs)), "what is written does not come back: {never:?}");
}
