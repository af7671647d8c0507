// Memory for weights, which are read from end to end at every step: in large pages.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1
#endif

constexpr long LARGE_PAGE = 1L << 21;

extern "C" {

// Where `bytes`, whole pages, of an open file lie now, on the border of a large page; null where
// they cannot.
void *hecate_map(int file, long bytes, int writable) {
  const int reserve = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  char *room = (char *)mmap(nullptr, bytes + LARGE_PAGE, PROT_NONE, reserve, -1, 0);
  if (room == MAP_FAILED) return nullptr;
  char *at = (char *)(((uintptr_t)room + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE);
  if (at > room) munmap(room, at - room);
  munmap(at + bytes, LARGE_PAGE - (at - room));
  const int access = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  if (mmap(at, bytes, access, MAP_SHARED | MAP_FIXED, file, 0) != MAP_FAILED) return at;
  munmap(at, bytes);
  return nullptr;
}

// The same bytes at the same place, to be read only; not 0 where that fails.
int hecate_map_again(int file, void *at, long bytes) {
  return mmap(at, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED;
}

void hecate_unmap(void *at, long bytes) { munmap(at, bytes); }

// Large pages for a mapped file that is empty yet: the kernel keeps them away from files in memory
// unless it is set to give them or asked for each. Returns how many there are.
long hecate_collapse(char *at, long bytes) {
  long found = 0;
  for (long done = 0; done + LARGE_PAGE <= bytes; done += LARGE_PAGE) {
    *(volatile char *)(at + done) = 0;  // there has to be something to collapse
    if (madvise(at + done, LARGE_PAGE, MADV_COLLAPSE) == 0)
      found++;
    else if (errno == EINVAL)
      break;  // not with this kernel
  }
  return found;
}

}  // extern "C"
