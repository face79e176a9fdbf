//! A firmware that does in long mode, in a fraction of a second, what a kernel begins with.

/// Size of the ROM, bytes; it ends at 4 GiB.
const SIZE: usize = 64 << 10;
/// Where the program lies in it.
const PROGRAM_AT: usize = 0xff00;
/// Where the processor begins: 16 bytes before the end, in real mode.
const RESET_AT: usize = 0xfff0;
/// What the program writes to port 0xf4 when all is well.
const WELL: i32 = 0x20;

/// RAM the program needs, MiB.
pub(crate) const RAM_MIB: u32 = 96;
/// QEMU's exit code then: isa-debug-exit ends it with twice the byte and one more.
pub(crate) const WELL_EXIT: i32 = WELL << 1 | 1;

/// Real mode, protected mode, long mode with 2 MiB pages (0 to 96 MiB, and the last 2 MiB for the ROM), work, report.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0xfa,                                                               // cli
    0x2e, 0x66, 0x0f, 0x01, 0x16, 0xc5, 0xff,                           // lgdtl %cs:(gdtr)
    0x0f, 0x20, 0xc0,                                                   // mov %cr0, %eax
    0x0c, 0x01,                                                         // or $1, %al
    0x0f, 0x22, 0xc0,                                                   // mov %eax, %cr0
    0x66, 0xea, 0x18, 0xff, 0xff, 0xff, 0x08, 0x00,                     // ljmpl $8, $protected
    // protected: the page tables; memory is zero to begin with
    0xb8, 0x10, 0x00, 0x00, 0x00,                                       // mov $0x10, %eax
    0x8e, 0xd8,                                                         // mov %eax, %ds
    0x8e, 0xc0,                                                         // mov %eax, %es
    0x8e, 0xd0,                                                         // mov %eax, %ss
    0xc7, 0x05, 0x00, 0x10, 0x00, 0x00, 0x03, 0x20, 0x00, 0x00,         // movl $0x2003, 0x1000
    0xc7, 0x05, 0x00, 0x20, 0x00, 0x00, 0x03, 0x30, 0x00, 0x00,         // movl $0x3003, 0x2000
    0xc7, 0x05, 0x18, 0x20, 0x00, 0x00, 0x03, 0x40, 0x00, 0x00,         // movl $0x4003, 0x2018
    0xc7, 0x05, 0xf8, 0x4f, 0x00, 0x00, 0x83, 0x00, 0xe0, 0xff,         // movl $0xffe00083, 0x4ff8
    0xbf, 0x00, 0x30, 0x00, 0x00,                                       // mov $0x3000, %edi
    0xb8, 0x83, 0x00, 0x00, 0x00,                                       // mov $0x83, %eax
    0xb9, 0x30, 0x00, 0x00, 0x00,                                       // mov $48, %ecx
    0x89, 0x07,                                                         // fill: mov %eax, (%edi)
    0x05, 0x00, 0x00, 0x20, 0x00,                                       // add $0x200000, %eax
    0x83, 0xc7, 0x08,                                                   // add $8, %edi
    0xe2, 0xf4,                                                         // loop fill
    // PAE, the tables, EFER.LME, paging
    0xb8, 0x20, 0x00, 0x00, 0x00,                                       // mov $0x20, %eax
    0x0f, 0x22, 0xe0,                                                   // mov %eax, %cr4
    0xb8, 0x00, 0x10, 0x00, 0x00,                                       // mov $0x1000, %eax
    0x0f, 0x22, 0xd8,                                                   // mov %eax, %cr3
    0xb9, 0x80, 0x00, 0x00, 0xc0,                                       // mov $0xc0000080, %ecx
    0x0f, 0x32,                                                         // rdmsr
    0x0d, 0x00, 0x01, 0x00, 0x00,                                       // or $0x100, %eax
    0x0f, 0x30,                                                         // wrmsr
    0x0f, 0x20, 0xc0,                                                   // mov %cr0, %eax
    0x0d, 0x00, 0x00, 0x00, 0x80,                                       // or $0x80000000, %eax
    0x0f, 0x22, 0xc0,                                                   // mov %eax, %cr0
    0xea, 0x96, 0xff, 0xff, 0xff, 0x18, 0x00,                           // ljmp $0x18, $long
    // long: copies 32 MiB backwards, as Linux moves itself, and looks at what came last
    0xc7, 0x04, 0x25, 0x00, 0x00, 0x00, 0x01, 0x65, 0x6e, 0x6c, 0x79,   // movl $0x796c6e65, 0x1000000
    0xbe, 0xf8, 0xff, 0xff, 0x02,                                       // mov $0x2fffff8, %esi
    0xbf, 0xf8, 0xff, 0xff, 0x04,                                       // mov $0x4fffff8, %edi
    0xb9, 0x00, 0x00, 0x40, 0x00,                                       // mov $0x400000, %ecx
    0xfd,                                                               // std
    0xf3, 0x48, 0xa5,                                                   // rep movsq
    0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x03,                           // mov 0x3000000, %eax
    0x2d, 0x45, 0x6e, 0x6c, 0x79,                                       // sub $0x796c6e45, %eax
    0xe6, 0xf4,                                                         // out %al, $0xf4
    0xf4,                                                               // stop: hlt
    0xeb, 0xfd,                                                         // jmp stop
    0x1f, 0x00,                                                         // gdtr: .word 31
    0xcb, 0xff, 0xff, 0xff,                                             // .long gdt
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,                     // .quad 0
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xcf, 0x00,                     // .quad 0x00cf9b000000ffff
    0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00,                     // .quad 0x00cf93000000ffff
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xaf, 0x00,                     // .quad 0x00af9b000000ffff
];

/// The firmware image.
pub(crate) fn image() -> Vec<u8> {
    let mut rom = vec![0; SIZE];
    rom[PROGRAM_AT..PROGRAM_AT + PROGRAM.len()].copy_from_slice(PROGRAM);
    // jmp PROGRAM_AT, relative to the end of its own three bytes
    rom[RESET_AT..RESET_AT + 3].copy_from_slice(&[0xe9, 0x0d, 0xff]);
    rom
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reset_vector_leads_to_the_program_and_does_not_overlap_it() {
        let rom = image();
        let offset = i16::from_le_bytes([rom[RESET_AT + 1], rom[RESET_AT + 2]]);
        assert_eq!(RESET_AT as isize + 3 + isize::from(offset), PROGRAM_AT as isize);
        assert!(PROGRAM_AT + PROGRAM.len() <= RESET_AT);
    }
}
