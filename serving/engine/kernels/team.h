// Threads that help with a loop if they can. Who asks takes part, and at the end waits for what is
// under way, never for a thread to begin: one that the machine gives no core costs nothing but its
// help. (OpenMP's barriers wait for all; beside other busy processes steps then take ten times as
// long.)
#pragma once
#include <atomic>
#include <thread>
#include <type_traits>
#include <vector>

class Team {
 public:
  explicit Team(int threads) {
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { help(i); });
  }

  ~Team() {
    stop_ = true;
    wake();
    for (std::thread &helper : helpers_) helper.join();
  }

  long size() const { return long(helpers_.size()) + 1; }

  // each(i), or each(i, member), for i in [0, count), in any order and on any thread.
  template <class Each> void run(long count, const Each &each) {
    if (count < 2 || helpers_.empty()) {
      for (long i = 0; i < count; ++i) call(each, i, 0);
      return;
    }
    each_ = &each;
    call_ = [](const void *each, long i, long member) { call(*(const Each *)each, i, member); };
    count_ = count;
    next_ = 0;
    open_ = true;  // what a helper that sees this reads is written
    wake();
    take(0);
    open_ = false;
    // A helper counts as busy before it looks whether there is a loop, so that none is overlooked.
    for (int turns = 0; busy_; ++turns) pause(turns);
  }

  // each(first, last) for rows in pieces of at most `most`.
  template <class Each> void rows(long count, long most, const Each &each) {
    run((count + most - 1) / most,
        [&](long i) { each(i * most, std::min(count, (i + 1) * most)); });
  }

 private:
  static const int PATIENCE = 4000;  // turns before a helper sleeps: some 50 us

  template <class Each> static void call(const Each &each, long i, long member) {
    if constexpr (std::is_invocable_v<Each, long, long>)
      each(i, member);
    else
      each(i);
  }

  void take(long member) {
    const long count = count_;
    for (long i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;)
      call_(each_, i, member);
  }

  void help(long member) {
    for (int turns = 0; !stop_;) {
      if (open_) {
        ++busy_;
        if (open_) take(member);
        --busy_;
        while (open_ && next_ >= count_ && !stop_) pause(turns++);  // nothing is left of this one
        turns = 0;
      } else if (turns < PATIENCE) {
        relax();
        ++turns;
      } else {
        const unsigned before = rung_;
        ++asleep_;
        if (!open_ && !stop_) rung_.wait(before);
        --asleep_;
        turns = 0;
      }
    }
  }

  void wake() {
    if (asleep_ || stop_) {
      ++rung_;
      rung_.notify_all();
    }
  }

  static void pause(int turns) {
    if (turns < 200)
      relax();
    else
      std::this_thread::yield();
  }

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  std::vector<std::thread> helpers_;
  const void *each_ = nullptr;
  void (*call_)(const void *, long, long) = nullptr;
  std::atomic<long> count_{0};
  std::atomic<long> next_{0};
  std::atomic<bool> open_{false}, stop_{false};
  std::atomic<int> busy_{0}, asleep_{0};
  std::atomic<unsigned> rung_{0};
};
