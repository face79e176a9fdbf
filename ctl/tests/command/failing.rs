//! What is said, and with which exit code, when something is in the way.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpListener,
    thread,
};

use serde_json::json;
use throughline_wire::status;
use tonic::{Code, Status};

use crate::{
    fake::{Answer, Controller},
    run::{command, ended, run},
};

#[test]
fn refusals_have_their_exit_code() {
    let fabric = Controller::start();
    let codes = [
        (Code::FailedPrecondition, 3),
        (Code::AlreadyExists, 3),
        (Code::ResourceExhausted, 3),
        (Code::NotFound, 4),
        (Code::InvalidArgument, 5),
        (Code::Unavailable, 6),
        (Code::Internal, 1),
    ];
    for (code, exit) in codes {
        fabric.answer("get_guest", Answer::Error(Status::new(code, "because")));
        let ended = run(fabric.address, "guest get web-1").with(exit);
        assert_eq!((ended.stdout.as_str(), ended.stderr.lines().count()), ("", 1), "{ended:?}");
    }
}

#[test]
fn a_wrong_field_is_named() {
    let fabric = Controller::start();
    let wrong = || status(Code::InvalidArgument, "INVALID_VNI", Some("network.vni"), "network.vni is 16777216");
    fabric.answer("create_network", Answer::Error(wrong())).answer("create_network", Answer::Error(wrong()));
    let line = "network create blue --vni 16777216";
    let expected = "error: create network blue: network.vni is 16777216 (INVALID_VNI)\n  field: network.vni\n";
    assert_eq!(run(fabric.address, line).with(5).stderr, expected);
    let error = run(fabric.address, &format!("{line} -o json")).with(5).error();
    let parts = [&error["reason"], &error["code"], &error["field"], &error["exit_code"]];
    assert_eq!(parts, [&json!("INVALID_VNI"), &json!("INVALID_ARGUMENT"), &json!("network.vni"), &json!(5)]);
}

#[test]
fn a_server_cannot_drive_the_terminal() {
    let fabric = Controller::start();
    fabric.answer("get_host", Answer::Error(Status::not_found("\u{1b}[2J\u{7}gone")));
    fabric.says("get_host", json!({ "name": "\u{1b}]0;owned\u{7}" }));
    let ended = run(fabric.address, "host get h1").with(4);
    assert!(!ended.stderr.trim_end().contains(char::is_control), "{ended:?}");
    let ended = run(fabric.address, "host get h1").with(0);
    assert!(!ended.stdout.replace('\n', "").contains(char::is_control), "{ended:?}");
}

#[test]
fn nobody_there() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ended = run(address, "host list").with(6);
    assert!(ended.stderr.starts_with(&format!("error: reach the controller at https://{address}: ")), "{ended:?}");
    assert!(ended.stderr.contains("(CONTROLLER_UNREACHABLE)\n  next: "), "{ended:?}");
    assert_eq!(run(address, "host list -o json").with(6).error()["reason"], json!("CONTROLLER_UNREACHABLE"));
}

#[test]
fn nobody_answers() {
    let fabric = Controller::start();
    fabric.answer("list_hosts", Answer::Silence);
    let ended = run(fabric.address, "host list --timeout 200ms -o json").with(6);
    assert_eq!(ended.error()["reason"], json!("TIMEOUT"));
}

#[test]
fn somebody_else_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\nthis is no controller\r\n").unwrap();
    });
    let ended = run(address, "host list").with(6);
    assert!(ended.stderr.contains("CONTROLLER_UNREACHABLE"), "{ended:?}");
    server.join().unwrap();
}

#[test]
fn usage_is_told_without_asking_anybody() {
    let fabric = Controller::start();
    let ended = run(fabric.address, "guest create web-1 --memory 10Gb").with(2);
    assert!(ended.stderr.contains("'--memory <SIZE>'") && ended.stderr.contains("unknown unit"), "{ended:?}");
    for line in ["", "migrate", "migrate web-1 --watch --detach", "network create b --vni -1", "nonsense"] {
        run(fabric.address, line).with(2);
    }
}

#[test]
fn a_reader_that_leaves_is_no_panic() {
    let fabric = Controller::start();
    fabric.says("list_hosts", json!({}));
    for line in ["completions bash", "host list -o json"] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let child = command(fabric.address, line).stdout(writer).spawn().unwrap();
        let ended = ended(child).with(141);
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn completions_know_every_command() {
    let address = "127.0.0.1:9".parse().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(address, &format!("completions {shell}")).with(0).stdout;
        for word in ["network", "endpoint", "migrate", "migration", "completions", "longest-pause"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn help_tells_exit_codes_and_examples() {
    let address = "127.0.0.1:9".parse().unwrap();
    let help = run(address, "--help").with(0).stdout;
    for part in ["EXAMPLES:", "EXIT CODES:", "THROUGHLINE_CONTROLLER", "  7    the migration was aborted"] {
        assert!(help.contains(part), "{part}: {help}");
    }
}
