// What the files of the fake CANN runtime share: devices, streams, work and errors.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace fake {

// CANN's error codes, as far as they are answered (aclError and aclnnStatus in Huawei's AscendCL reference).
enum Error : int {
    OK = 0,
    INVALID_PARAM = 100000,
    NOT_SUPPORTED = 200006,
    OUT_OF_MEMORY = 207001,
    NO_CONTEXT = 107002,
    IN_CAPTURE = 107030,
    DEVICE_NOT_THERE = 107001,
    STREAM_TIMEOUT = 507014,
    INNER = 561000,
    BLOCKED = -1,  // of work: it waits for another stream
};

using Work = std::function<int()>;

// A piece of captured work. A task group's nodes can be given other arguments before a replay.
struct Node {
    std::string name;
    Work work;
};

struct Group {
    std::vector<std::shared_ptr<Node>> nodes;
    std::size_t next = 0;  // the node that the next work on an updating stream replaces
    bool dead = false;     // its graph was destroyed, and its handle is good for nothing
};

struct Graph {
    int device;
    std::vector<std::shared_ptr<Node>> nodes;
    std::vector<Group*> groups;
};

struct Stream {
    int device;
    int id;
    Graph* capturing = nullptr;
    Group* grouping = nullptr;  // capturing into a task group
    Group* updating = nullptr;
    std::deque<Work> pending;  // from the first work that is blocked
};

// Counts a call by name; readable as fake_npu_counters().
void count(const std::string& name, std::int64_t more = 1);

// Remembers what was wrong for aclGetRecentErrMsg, and returns the code.
int fail(int code, const std::string& text);

// Device of the current thread, -1 before aclrtSetDevice.
int current_device();

// Device that owns [address, address + size), -1 where no device memory holds all of it.
int owner(const void* address, std::size_t size);

// Null is the current device's default stream.
Stream* stream_of(void* handle);

// Runs work now, or keeps it where the stream is blocked, or is capturing or updating a graph.
int enqueue(Stream* stream, const std::string& name, Work work);

bool capturing();

// Puts work at the end of a stream that captures nothing.
int run(Stream* stream, Work work);

// The host waits for the device: counted, refused during a capture, and an error where a stream stays blocked.
int wait(const char* name);

}  // namespace fake
