//! Compiles the protocol with a compiler written in Rust, so that no `protoc` is needed.
use std::{env, fs, path::PathBuf};

use prost::Message as _;
use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};
use tonic_prost_build::Builder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../proto");
    let files = ["model", "fabric", "agent_link", "peer"].map(|f| format!("throughline/v1/{f}.proto"));
    println!("cargo:rerun-if-changed={}", root.display());
    let set = protox::compile(&files, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), set.encode_to_vec())?;
    let builder = tonic_prost_build::configure()
        // They hold secrets; see `src/secret.rs`.
        .skip_debug([
            "throughline.v1.Prepared",
            "throughline.v1.DiskStream",
            "throughline.v1.Sealed",
            "throughline.v1.DesiredReplication",
            "throughline.v1.DesiredReplica",
            "throughline.v1.BeginPoint",
        ])
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]")
        .enum_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]");
    name_enums(builder, &set).compile_fds(set)?;
    Ok(())
}

/// Makes every enum, and every field of an enum type, show its name in JSON (see `src/names.rs`), and every choice its field's. The fields
/// must be singular, as all are; a repeated one would not compile.
fn name_enums(mut builder: Builder, set: &FileDescriptorSet) -> Builder {
    for file in &set.file {
        let package = format!(".{}", file.package());
        for item in &file.enum_type {
            let path = format!("{package}.{}", item.name());
            builder = builder.enum_attribute(path, r#"#[serde(rename_all = "SCREAMING_SNAKE_CASE")]"#);
        }
        for message in &file.message_type {
            for choice in &message.oneof_decl {
                let path = format!("{package}.{}.{}", message.name(), choice.name());
                builder = builder.enum_attribute(path, r#"#[serde(rename_all = "snake_case")]"#);
            }
            for field in message.field.iter().filter(|field| field.r#type() == Type::Enum) {
                let path = format!("{package}.{}.{}", message.name(), field.name());
                let rust = field.type_name().replacen(&format!("{package}."), "crate::v1::", 1);
                let with =
                    ["serialize", "deserialize"].map(|f| format!(r#"{f}_with = "crate::names::{f}::<{rust}, _>""#));
                builder = builder.field_attribute(path, format!("#[serde({})]", with.join(", ")));
            }
        }
    }
    builder
}
