// Devices, memory, streams, events and copies. Device memory is the host's. Work runs when it
// is enqueued, unless its stream waits for an event.
#include "fake.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>

namespace fake {
namespace {

constexpr int MAX_DEVICES = 16;
constexpr std::size_t MEMORY = std::size_t(16) << 30;  // bytes of each device

struct Block {
    std::size_t size;
    int device;
};

struct Event {
    Graph* graph = nullptr;  // of the capture it was recorded in
    std::int64_t asked = 0, done = 0;  // records that were enqueued, and that ran
    std::chrono::steady_clock::time_point time{};
};

std::recursive_mutex lock;
using Locked = std::lock_guard<std::recursive_mutex>;
std::map<std::uintptr_t, Block> blocks;
std::map<std::uintptr_t, std::size_t> pinned;  // host memory by aclrtMallocHost
std::map<std::string, std::int64_t> counts;
std::vector<Stream*> streams;
std::size_t used[MAX_DEVICES];
char contexts[MAX_DEVICES];
thread_local int device = -1;
thread_local bool just_waited = false;
thread_local std::string message;

std::string setting(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value ? value : otherwise;
}

// The driver reads ASCEND_RT_VISIBLE_DEVICES up to the first entry that is no device.
std::vector<int> visible() {
    const int all = std::min(std::atoi(setting("FAKE_NPU_DEVICES", "0").c_str()), MAX_DEVICES);
    std::vector<int> found;
    const char* chosen = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
    if (!chosen) {
        for (int i = 0; i < all; ++i) found.push_back(i);
        return found;
    }
    std::stringstream text(chosen);
    for (std::string part; std::getline(text, part, ',');) {
        char* end = nullptr;
        const long index = std::strtol(part.c_str(), &end, 10);
        if (end == part.c_str() || index < 0 || index >= all) break;
        found.push_back(int(index));
    }
    return found;
}

Stream* new_stream(int of) {
    Locked guard(lock);
    streams.push_back(new Stream{of, int(streams.size())});
    return streams.back();
}

int allocate(void** pointer, std::size_t size) {
    if (device < 0) return fail(NO_CONTEXT, "aclrtMalloc: no device was set on this thread");
    Locked guard(lock);
    if (used[device] + size > MEMORY)
        return fail(OUT_OF_MEMORY, "device " + std::to_string(device) + " has " + std::to_string(MEMORY - used[device]) +
                                       " bytes left, " + std::to_string(size) + " were asked for");
    if (posix_memalign(pointer, 512, size ? size : 512)) return fail(OUT_OF_MEMORY, "the host's memory is used up");
    std::memset(*pointer, 0xff, size);  // NaN in every float format: what nobody wrote shows
    blocks[std::uintptr_t(*pointer)] = {size, device};
    used[device] += size;
    return OK;
}

enum Kind { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE };

int copy(const char* name, void* to, std::size_t room, const void* from, std::size_t size, int kind) {
    if (size > room) return fail(INVALID_PARAM, std::string(name) + ": more bytes than the destination has");
    const bool to_device = kind == HOST_TO_DEVICE || kind == DEVICE_TO_DEVICE;
    const bool from_device = kind == DEVICE_TO_HOST || kind == DEVICE_TO_DEVICE;
    if (size && ((to_device && owner(to, size) < 0) || (from_device && owner(from, size) < 0)))
        return fail(INVALID_PARAM, std::string(name) + ": an address is not device memory, of " + std::to_string(size) +
                                       " bytes and kind " + std::to_string(kind));
    if (size) std::memmove(to, from, size);
    return OK;
}

// Runs what is no longer blocked, until nothing moves. The first error is kept for the next wait. No lock is held
// meanwhile: work calls Python, whose own lock another thread may hold while it asks for ours.
int failed = OK;
std::string failure;
std::atomic<bool> progressing{false};

bool is_pending() {
    Locked guard(lock);
    return std::any_of(streams.begin(), streams.end(), [](Stream* stream) { return !stream->pending.empty(); });
}

void progress() {
    if (!is_pending() || progressing.exchange(true)) return;
    for (bool moved = true; moved;) {
        moved = false;
        for (std::size_t i = 0; i < streams.size(); ++i) {
            auto& pending = streams[i]->pending;
            while (!pending.empty()) {
                const int code = pending.front()();
                if (code == BLOCKED) break;
                pending.pop_front();
                moved = true;
                if (code && !failed) failed = code, failure = message;
            }
        }
    }
    progressing = false;
}

// Work that is not done yet keeps its event, whose handle may be destroyed before.
using Handle = std::shared_ptr<Event>;
Handle event_of(void* handle) { return *static_cast<Handle*>(handle); }

void* token() { return std::calloc(1, 64); }

}  // namespace

void count(const std::string& name, std::int64_t more) {
    Locked guard(lock);
    counts[name] += more;
}

int fail(int code, const std::string& text) {
    message = "fake NPU: " + text;
    if (std::getenv("FAKE_NPU_TRACE")) std::fprintf(stderr, "%d %s\n", code, message.c_str());
    return code;
}

int current_device() { return device; }

int owner(const void* address, std::size_t size) {
    Locked guard(lock);
    auto block = blocks.upper_bound(std::uintptr_t(address));
    if (block == blocks.begin()) return -1;
    --block;
    return std::uintptr_t(address) + size <= block->first + block->second.size ? block->second.device : -1;
}

Stream* stream_of(void* handle) {
    static Stream defaults[MAX_DEVICES];
    if (handle) return static_cast<Stream*>(handle);
    defaults[device < 0 ? 0 : device].device = device < 0 ? 0 : device;
    return &defaults[device < 0 ? 0 : device];
}

bool capturing() {
    Locked guard(lock);
    for (auto stream : streams)
        if (stream->capturing) return true;
    return false;
}

int wait(const char* name) {
    if (capturing()) return fail(IN_CAPTURE, std::string(name) + " during a capture: the host can't wait for a graph");
    count("host_waits");
    just_waited = true;
    progress();
    if (failed) {
        message = failure;
        return std::exchange(failed, int(OK));
    }
    Locked guard(lock);
    for (auto stream : streams)
        if (!stream->pending.empty())
            return fail(STREAM_TIMEOUT, std::string(name) + ": stream " + std::to_string(stream->id) +
                                            " waits for an event that nobody records");
    return OK;
}

int run(Stream* stream, Work work) {
    if (stream->pending.empty()) {
        const int code = work();
        if (code != BLOCKED) return code;
    }
    stream->pending.push_back(std::move(work));
    return OK;
}

int enqueue(Stream* stream, const std::string& name, Work work) {
    just_waited = false;
    if (Group* group = stream->updating) {
        if (group->next == group->nodes.size())
            return fail(INVALID_PARAM, "update: the captured task group has " + std::to_string(group->nodes.size()) +
                                           " tasks, " + name + " is one more");
        auto node = group->nodes[group->next++];
        if (node->name != name)
            return fail(INVALID_PARAM, "update: the captured task is " + node->name + ", the new one " + name);
        // The update is work of the updating stream: it comes after what that stream waits for, and not before.
        return run(stream, [node, work = std::move(work)] { node->work = work; return int(OK); });
    }
    if (!stream->capturing) return run(stream, std::move(work));
    auto node = std::make_shared<Node>(Node{name, std::move(work)});
    stream->capturing->nodes.push_back(node);
    if (stream->grouping) stream->grouping->nodes.push_back(node);
    return OK;
}

}  // namespace fake

using namespace fake;
#define COUNTED count(__func__)

extern "C" {

// For tests: "name=count" lines. The text lives until the next call.
const char* fake_npu_counters() {
    static std::string text;
    Locked guard(lock);
    text.clear();
    for (auto& [name, number] : counts) text += name + "=" + std::to_string(number) + "\n";
    return text.c_str();
}
void fake_npu_reset_counters() {
    Locked guard(lock);
    counts.clear();
}
int fake_npu_owner(const void* address, std::size_t size) { return owner(address, size); }
int fake_npu_fail(int code, const char* text) { return fail(code, text); }

const char* aclGetRecentErrMsg() {
    static thread_local std::string shown;
    shown.swap(message);
    message.clear();
    return shown.empty() ? nullptr : shown.c_str();
}

// Devices
const char* aclrtGetSocName() {
    static std::string name = setting("FAKE_NPU_SOC", "Ascend910B1");
    return name.c_str();
}
int aclrtGetDeviceCount(std::uint32_t* number) { COUNTED; *number = std::uint32_t(visible().size()); return OK; }
int aclrtSetDevice(int index) {
    COUNTED;
    if (index < 0 || index >= int(visible().size()))
        return fail(DEVICE_NOT_THERE, "aclrtSetDevice(" + std::to_string(index) + "): there are " +
                                          std::to_string(visible().size()) + " devices");
    device = index;
    return OK;
}
int aclrtResetDevice(int) { COUNTED; return OK; }
int aclrtGetDevice(int* index) { if (device < 0) return NO_CONTEXT; *index = device; return OK; }
int aclrtGetCurrentContext(void** context) { if (device < 0) return NO_CONTEXT; *context = &contexts[device]; return OK; }
int aclrtSetCurrentContext(void* context) { device = int(static_cast<char*>(context) - contexts); return OK; }
int aclrtGetPrimaryCtxState(int index, std::uint32_t* flags, int* active) {
    if (flags) *flags = 0;
    if (active) *active = index == device;
    return OK;
}
int aclrtGetLogicDevIdByUserDevId(int user, int* logic) { *logic = user; return OK; }
int aclrtGetPhyDevIdByLogicDevId(int logic, int* physical) { *physical = visible().at(std::size_t(logic)); return OK; }
int aclGetDeviceCapability(std::uint32_t, int, std::int64_t* value) { *value = 24; return OK; }
int aclrtGetDeviceInfo(std::uint32_t, int, std::int64_t* value) { *value = 24; return OK; }
int aclrtDeviceCanAccessPeer(int* can, int, int) { *can = 1; return OK; }
int aclsysGetVersionStr(const char*, char* version) { std::strcpy(version, "9.0.0"); return OK; }
int aclsysGetCANNVersion(int, void* version) { std::strcpy(static_cast<char*>(version), "9.0.0"); return OK; }
std::size_t aclGetCompileoptSize(int) { return 16; }
int aclGetCompileopt(int, char* value, std::size_t size) {
    std::memset(value, 0, size);
    std::strncpy(value, "disable", size - 1);
    return OK;
}

int aclGetCannAttribute(int, std::int32_t* value) { *value = 1; return OK; }  // infinities and NaN are kept, as on A2
int aclrtGetSysParamOpt(int, std::int64_t* value) { *value = 0; return OK; }
int aclrtCtxGetSysParamOpt(int, std::int64_t* value) { *value = 0; return OK; }
int aclrtPeekAtLastError(int) { return OK; }
int aclrtGetLastError(int) { return OK; }

// Memory
int aclrtMalloc(void** pointer, std::size_t size, int) { COUNTED; return allocate(pointer, size); }
int aclrtMallocAlign32(void** pointer, std::size_t size, int) { COUNTED; return allocate(pointer, size); }
int aclrtFree(void* pointer) {
    COUNTED;
    Locked guard(lock);
    auto block = blocks.find(std::uintptr_t(pointer));
    if (block == blocks.end()) return fail(INVALID_PARAM, "aclrtFree: no device memory starts at this address");
    used[block->second.device] -= block->second.size;
    blocks.erase(block);
    std::free(pointer);
    return OK;
}
int aclrtMallocHost(void** pointer, std::size_t size) {
    if (posix_memalign(pointer, 512, size ? size : 512)) return OUT_OF_MEMORY;
    Locked guard(lock);
    pinned[std::uintptr_t(*pointer)] = size ? size : 512;
    return OK;
}
int aclrtMallocHostWithCfg(void** pointer, std::size_t size, void*) { return aclrtMallocHost(pointer, size); }
int aclrtFreeHost(void* pointer) {
    Locked guard(lock);
    pinned.erase(std::uintptr_t(pointer));
    std::free(pointer);
    return OK;
}
// acl_rt.h of the wheel: location {id, type: 0 host (pinned), 1 device, 2 unregistered}, page size, four reserved.
int aclrtPointerGetAttributes(const void* pointer, std::uint32_t* attributes) {
    const int where = fake::owner(pointer, 1);
    Locked guard(lock);
    auto block = pinned.upper_bound(std::uintptr_t(pointer));
    const bool host = block != pinned.begin() && std::uintptr_t(pointer) < std::prev(block)->first + std::prev(block)->second;
    std::memset(attributes, 0, 7 * sizeof *attributes);
    attributes[0] = where < 0 ? 0 : std::uint32_t(where);
    attributes[1] = where >= 0 ? 1 : host ? 0 : 2;
    return OK;
}
int aclrtGetMemInfo(int, std::size_t* left, std::size_t* total) {
    Locked guard(lock);
    *total = MEMORY;
    *left = MEMORY - used[device < 0 ? 0 : device];
    return OK;
}
int aclrtMemcpy(void* to, std::size_t room, const void* from, std::size_t size, int kind) {
    COUNTED;
    const bool waited = just_waited;  // torch_npu synchronises the stream first: one wait, not two
    if (kind != HOST_TO_HOST && !waited)
        if (int code = wait("aclrtMemcpy")) return code;
    if (capturing()) return fail(IN_CAPTURE, "aclrtMemcpy during a capture: a blocking copy can't be captured");
    if (kind == DEVICE_TO_HOST) count("blocking_copies_to_host");
    if (kind == HOST_TO_DEVICE) count("blocking_copies_to_device");
    just_waited = false;
    return copy("aclrtMemcpy", to, room, from, size, kind);
}
int aclrtMemcpyAsync(void* to, std::size_t room, const void* from, std::size_t size, int kind, void* stream) {
    COUNTED;
    return enqueue(stream_of(stream), __func__, [=] { return copy("aclrtMemcpyAsync", to, room, from, size, kind); });
}
int aclrtMemset(void* to, std::size_t, int value, std::size_t size) { COUNTED; std::memset(to, value, size); return OK; }
int aclrtMemsetAsync(void* to, std::size_t, int value, std::size_t size, void* stream) {
    COUNTED;
    return enqueue(stream_of(stream), __func__, [=] { std::memset(to, value, size); return int(OK); });
}

// Streams
int aclrtCreateStream(void** stream) { *stream = new_stream(device); return OK; }
int aclrtCreateStreamWithConfig(void** stream, std::uint32_t, std::uint32_t) { *stream = new_stream(device); return OK; }
int aclrtDestroyStream(void*) { return OK; }
int aclrtDestroyStreamForce(void*) { return OK; }
int aclrtStreamGetId(void* stream, int* id) { *id = stream_of(stream)->id; return OK; }
int aclrtStreamQuery(void* stream, int* status) { *status = stream_of(stream)->pending.empty() ? 0 : 1; return OK; }
int aclrtSynchronizeStream(void*) { COUNTED; return wait(__func__); }
int aclrtSynchronizeStreamWithTimeout(void*, int) { COUNTED; return wait(__func__); }
int aclrtSynchronizeDevice() { COUNTED; return wait(__func__); }
int aclrtSynchronizeDeviceWithTimeout(int) { COUNTED; return wait(__func__); }
int aclrtSynchronizeEvent(void*) { COUNTED; return wait(__func__); }
int aclrtSynchronizeEventWithTimeout(void*, int) { COUNTED; return wait(__func__); }

// Events
int aclrtCreateEvent(void** event) { *event = new Handle(std::make_shared<Event>()); return OK; }
int aclrtCreateEventWithFlag(void** event, std::uint32_t) { return aclrtCreateEvent(event); }
int aclrtCreateEventExWithFlag(void** event, std::uint32_t) { return aclrtCreateEvent(event); }
int aclrtDestroyEvent(void* event) { delete static_cast<Handle*>(event); return OK; }
int aclrtRecordEvent(void* handle, void* stream) {
    COUNTED;
    auto event = event_of(handle);
    event->graph = stream_of(stream)->capturing;
    if (event->graph) return OK;
    const auto ticket = ++event->asked;
    const int code = run(stream_of(stream), [=] {
        event->done = ticket;
        event->time = std::chrono::steady_clock::now();
        return int(OK);
    });
    progress();
    return code;
}
int aclrtResetEvent(void*, void*) { return OK; }
int aclrtStreamWaitEvent(void* stream, void* handle) {
    auto event = event_of(handle);
    if (event->graph) {  // a stream that waits for a captured event joins the capture
        stream_of(stream)->capturing = event->graph;
        return OK;
    }
    const auto ticket = event->asked;
    return run(stream_of(stream), [=] { return event->done >= ticket ? int(OK) : int(BLOCKED); });
}
int aclrtQueryEventStatus(void* event, int* status) { *status = event_of(event)->done >= event_of(event)->asked; return OK; }
int aclrtQueryEventWaitStatus(void* event, int* status) { *status = event_of(event)->done < event_of(event)->asked; return OK; }
int aclQueryEventRecordedStatus(void* event, int* status) { return aclrtQueryEventStatus(event, status); }
// ExternalEvent is a number in device memory: a captured wait can be answered from outside the graph.
int aclrtValueWrite(void* address, std::uint64_t value, std::uint32_t, void* stream) {
    COUNTED;
    const int code = enqueue(stream_of(stream), __func__, [=] { *static_cast<volatile std::uint64_t*>(address) = value; return int(OK); });
    progress();
    return code;
}
int aclrtValueWait(void* address, std::uint64_t value, std::uint32_t flag, void* stream) {
    COUNTED;
    return enqueue(stream_of(stream), __func__, [=] {
        const std::uint64_t now = *static_cast<volatile std::uint64_t*>(address);
        const bool met = flag == 0 ? std::int64_t(now - value) >= 0 : flag == 1 ? now == value : (now & value) != 0;
        return met ? int(OK) : int(BLOCKED);
    });
}
int aclrtEventElapsedTime(float* milliseconds, void* from, void* to) {
    *milliseconds = std::chrono::duration<float, std::milli>(event_of(to)->time - event_of(from)->time).count();
    return OK;
}

// Graphs (aclmdlRI): work on a capturing stream is kept, and run by each replay.
int aclmdlRICaptureGetInfo(void* stream, int* status, void** graph) {
    auto captured = stream_of(stream)->capturing;
    *status = captured ? 1 : 0;
    if (graph) *graph = captured;
    return OK;
}
int aclmdlRICaptureBegin(void* stream, int) {
    COUNTED;
    auto s = stream_of(stream);
    if (s->capturing) return fail(IN_CAPTURE, "aclmdlRICaptureBegin: this stream is capturing already");
    s->capturing = new Graph{s->device, {}, {}};
    return OK;
}
int aclmdlRICaptureEnd(void* stream, void** graph) {
    COUNTED;
    auto captured = stream_of(stream)->capturing;
    if (!captured) return fail(INVALID_PARAM, "aclmdlRICaptureEnd: this stream captures nothing");
    Locked guard(lock);
    for (auto s : streams)
        if (s->capturing == captured) s->capturing = nullptr;
    *graph = captured;
    return OK;
}
int aclmdlRICaptureThreadExchangeMode(int*) { return OK; }
int aclmdlRIExecuteAsync(void* graph, void* stream) {
    COUNTED;
    if (capturing()) return fail(IN_CAPTURE, "aclmdlRIExecuteAsync during a capture");
    auto captured = static_cast<Graph*>(graph);
    if (stream_of(stream)->device != captured->device)
        return fail(INVALID_PARAM, "replay on device " + std::to_string(stream_of(stream)->device) +
                                       " of a graph that was captured on device " + std::to_string(captured->device));
    just_waited = false;
    for (auto& node : captured->nodes)  // a task that is updated while the replay waits runs with its new arguments
        if (int code = run(stream_of(stream), [node] { return node->work(); })) return code;
    return OK;
}
int aclmdlRIGetId(void* graph, std::uint32_t* id) { *id = std::uint32_t(std::uintptr_t(graph) >> 4); return OK; }
int aclmdlRIDestroy(void* graph) {
    COUNTED;
    for (auto group : static_cast<Graph*>(graph)->groups) group->dead = true;
    delete static_cast<Graph*>(graph);
    return OK;
}
int aclmdlRICaptureTaskGrpBegin(void* stream) {
    COUNTED;
    auto s = stream_of(stream);
    if (!s->capturing) return fail(INVALID_PARAM, "aclmdlRICaptureTaskGrpBegin: this stream captures nothing");
    s->grouping = new Group;
    s->capturing->groups.push_back(s->grouping);
    return OK;
}
int aclmdlRICaptureTaskGrpEnd(void* stream, void** group) {
    COUNTED;
    *group = stream_of(stream)->grouping;
    stream_of(stream)->grouping = nullptr;
    return *group ? int(OK) : fail(INVALID_PARAM, "aclmdlRICaptureTaskGrpEnd: no task group was begun");
}
int aclmdlRICaptureTaskUpdateBegin(void* stream, void* group) {
    COUNTED;
    if (static_cast<Group*>(group)->dead)
        return fail(INVALID_PARAM, "aclmdlRICaptureTaskUpdateBegin: the graph of this task group was destroyed");
    if (stream_of(stream)->capturing)
        return fail(IN_CAPTURE, "aclmdlRICaptureTaskUpdateBegin: this stream is capturing");
    stream_of(stream)->updating = static_cast<Group*>(group);
    stream_of(stream)->updating->next = 0;
    return OK;
}
int aclmdlRICaptureTaskUpdateEnd(void* stream) {
    COUNTED;
    auto group = stream_of(stream)->updating;
    stream_of(stream)->updating = nullptr;
    if (!group) return fail(INVALID_PARAM, "aclmdlRICaptureTaskUpdateEnd: no update was begun");
    if (group->next != group->nodes.size())
        return fail(INVALID_PARAM, "update: " + std::to_string(group->next) + " of " + std::to_string(group->nodes.size()) +
                                       " captured tasks were given");
    return OK;
}

// Handles that nobody looks into
void* aclopCreateAttr() { return token(); }

}
