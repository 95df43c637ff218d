// SPDX-License-Identifier: Apache-2.0
// The simulation room: clock, reset, DDR and register master around the Verilated top.
//
// One tick is one clock cycle: inputs were set at the end of the previous one, the clock falls and
// everything combinational settles, handshakes are sampled and checked, the clock rises, and the
// memory's answer for the next cycle is worked out. Nothing of the slave's outputs depends on the
// master's outputs of the same cycle, so one evaluation a clock edge is enough.

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "Vshears.h"
#include "verilated.h"
#ifdef SHEARS_TRACE
#include "verilated_vcd_c.h"
#endif

namespace {

constexpr int BEAT_BYTES = 8;
constexpr unsigned OKAY = 0, SLVERR = 2, DECERR = 3, HANG = 4;
constexpr size_t MAX_BURSTS = 16;    // bursts the memory accepts before it answers the first
constexpr size_t MAX_EARLY_BEATS = 256;  // W beats the memory holds before their AW came

enum Status { OK = 0, TIMEOUT = 1, VIOLATION = 2 };

// What a range of addresses does to bursts that touch it; `left` bursts more, or for ever if < 0.
struct Fault {
    bool write;
    unsigned response;
    uint64_t start, end;
    int64_t left;
};

struct Burst {
    uint64_t address;
    unsigned beats, done;
    uint64_t due;         // first cycle in which the answer may be valid
    unsigned response;    // of a write, the worst so far
    Fault fault;          // fault.end == 0: none
    uint64_t generation;  // of the fault list; a hang ends when the list is cleared
};

struct Address {  // payload of AR or AW, to check its stability
    bool valid = false, ready = false;
    uint32_t address = 0;
    unsigned length = 0, size = 0, burst = 0, id = 0;
};

struct Data {  // payload of W
    bool valid = false, ready = false;
    uint64_t data = 0;
    unsigned strobe = 0;
    bool last = false;
};

class Harness {
  public:
    Harness(uint8_t* memory, uint64_t base, uint64_t size, unsigned read_latency,
            unsigned write_latency, unsigned stall_percent, uint64_t seed)
        : memory_{memory}, base_{base}, size_{size}, read_latency_{read_latency},
          write_latency_{write_latency}, stall_percent_{stall_percent},
          random_{seed * 0x9E3779B97F4A7C15ull + 1} {
#ifdef SHEARS_TRACE
        context_.traceEverOn(true);
#endif
        model_ = std::make_unique<Vshears>(&context_, "shears");
        model_->aclk = 0;
        reset(16);
    }

    ~Harness() {
        trace_close();
        model_->final();
    }

    int reset(unsigned cycles) {
        in_reset_ = true;
        reads_.clear();
        writes_.clear();
        early_.clear();
        responses_.clear();
        previous_ar_ = previous_aw_ = Address{};
        previous_w_ = Data{};
        Vshears& m = *model_;
        m.s_axi_awvalid = m.s_axi_wvalid = m.s_axi_arvalid = 0;
        m.s_axi_bready = m.s_axi_rready = 0;
        m.m_axi_rvalid = m.m_axi_bvalid = m.m_axi_arready = m.m_axi_awready = m.m_axi_wready = 0;
        m.m_axi_rid = m.m_axi_bid = 0;
        m.aresetn = 0;
        for (unsigned i = 0; i < cycles; ++i) tick();
        if (m.m_axi_arvalid || m.m_axi_awvalid || m.m_axi_wvalid)
            violation("a valid of m_axi is high in reset");
        m.aresetn = 1;
        in_reset_ = false;
        // The top registers its reset once: it is itself from the second cycle on.
        tick();
        tick();
        return status();
    }

    int run(uint64_t max_cycles, bool until_irq) {
        for (uint64_t i = 0; i < max_cycles && message_.empty(); ++i) {
            if (until_irq && model_->irq) return OK;
            tick();
        }
        if (!message_.empty()) return VIOLATION;
        return until_irq && !model_->irq ? TIMEOUT : OK;
    }

    int write_register(uint32_t address, uint32_t data, unsigned max_cycles, uint32_t* response) {
        Vshears& m = *model_;
        m.s_axi_awaddr = address;
        m.s_axi_awprot = 0;
        m.s_axi_wdata = data;
        m.s_axi_wstrb = 0xF;
        m.s_axi_awvalid = m.s_axi_wvalid = m.s_axi_bready = 1;
        for (unsigned i = 0; i < max_cycles; ++i) {
            if (int bad = tick()) return bad;
            if (lite_aw_) m.s_axi_awvalid = 0;
            if (lite_w_) m.s_axi_wvalid = 0;
            if (lite_b_) {
                *response = lite_response_;
                bool early = m.s_axi_awvalid || m.s_axi_wvalid;
                m.s_axi_awvalid = m.s_axi_wvalid = m.s_axi_bready = 0;
                if (early) violation("s_axi: B came before AW and W were taken");
                return status();
            }
        }
        m.s_axi_awvalid = m.s_axi_wvalid = m.s_axi_bready = 0;
        return TIMEOUT;
    }

    int read_register(uint32_t address, unsigned max_cycles, uint32_t* data, uint32_t* response) {
        Vshears& m = *model_;
        m.s_axi_araddr = address;
        m.s_axi_arprot = 0;
        m.s_axi_arvalid = m.s_axi_rready = 1;
        for (unsigned i = 0; i < max_cycles; ++i) {
            if (int bad = tick()) return bad;
            if (lite_ar_) m.s_axi_arvalid = 0;
            if (lite_r_) {
                *data = lite_data_;
                *response = lite_response_;
                if (m.s_axi_arvalid) violation("s_axi: R came before AR was taken");
                m.s_axi_arvalid = m.s_axi_rready = 0;
                return status();
            }
        }
        m.s_axi_arvalid = m.s_axi_rready = 0;
        return TIMEOUT;
    }

    void inject(bool write, unsigned response, uint64_t start, uint64_t size, int64_t count) {
        faults_.push_back(Fault{write, response, start, start + size, count});
    }

    void clear_faults() {
        faults_.clear();
        ++generation_;
    }

    bool trace_open(const char* path) {
#ifdef SHEARS_TRACE
        trace_close();
        trace_ = std::make_unique<VerilatedVcdC>();
        model_->trace(trace_.get(), 99);
        trace_->open(path);
        return trace_->isOpen();
#else
        (void)path;
        return false;
#endif
    }

    void trace_close() {
#ifdef SHEARS_TRACE
        if (trace_) trace_->close();
        trace_.reset();
#endif
    }

    int status() const { return message_.empty() ? OK : VIOLATION; }
    const char* message() const { return message_.c_str(); }
    bool irq() const { return model_->irq; }

    uint64_t cycle = 0, read_beats = 0, write_beats = 0, read_bursts = 0, write_bursts = 0;

  private:
    int tick() {
        Vshears& m = *model_;
        m.aclk = 0;
        m.eval();
        dump(false);

        Address ar{bool(m.m_axi_arvalid), bool(m.m_axi_arready), m.m_axi_araddr, m.m_axi_arlen,
                   m.m_axi_arsize, m.m_axi_arburst, m.m_axi_arid};
        Address aw{bool(m.m_axi_awvalid), bool(m.m_axi_awready), m.m_axi_awaddr, m.m_axi_awlen,
                   m.m_axi_awsize, m.m_axi_awburst, m.m_axi_awid};
        Data w{bool(m.m_axi_wvalid), bool(m.m_axi_wready), m.m_axi_wdata, m.m_axi_wstrb,
               bool(m.m_axi_wlast)};
        const bool r_taken = m.m_axi_rvalid && m.m_axi_rready;
        const bool b_taken = m.m_axi_bvalid && m.m_axi_bready;
        lite_aw_ = m.s_axi_awvalid && m.s_axi_awready;
        lite_w_ = m.s_axi_wvalid && m.s_axi_wready;
        lite_ar_ = m.s_axi_arvalid && m.s_axi_arready;
        lite_b_ = m.s_axi_bvalid && m.s_axi_bready;
        lite_r_ = m.s_axi_rvalid && m.s_axi_rready;
        if (lite_r_) lite_data_ = m.s_axi_rdata;
        if (lite_b_) lite_response_ = m.s_axi_bresp;
        if (lite_r_) lite_response_ = m.s_axi_rresp;

        m.aclk = 1;
        m.eval();
        dump(true);
        if (!in_reset_) {
            check_stable("AR", previous_ar_, ar);
            check_stable("AW", previous_aw_, aw);
            check_stable_data(w);
            read_channel(ar, r_taken);
            write_channel(aw, w, b_taken);
        }
        ++cycle;
        return status();
    }

    void read_channel(const Address& ar, bool r_taken) {
        Vshears& m = *model_;
        if (ar.valid && ar.ready) {
            check_burst("AR", ar);
            ++read_bursts;
            reads_.push_back(make_burst(false, ar, cycle + read_latency_));
        }
        if (r_taken) {
            m.m_axi_rvalid = 0;
            ++read_beats;
            Burst& burst = reads_.front();
            if (++burst.done == burst.beats) reads_.pop_front();
        }
        if (!m.m_axi_rvalid && !reads_.empty() && go()) {
            Burst& burst = reads_.front();
            if (cycle + 1 >= burst.due && !hangs(burst)) {
                const uint64_t address = burst.address + uint64_t(burst.done) * BEAT_BYTES;
                const unsigned response = response_at(burst, address);
                // Data of a failed beat is rubbish on purpose: nobody may use it.
                uint64_t data = 0xDEADBEEFDEADBEEFull;
                if (response == OKAY) std::memcpy(&data, memory_ + (address - base_), BEAT_BYTES);
                m.m_axi_rdata = data;
                m.m_axi_rresp = response;
                m.m_axi_rlast = burst.done + 1 == burst.beats;
                m.m_axi_rvalid = 1;
            }
        }
        m.m_axi_arready = reads_.size() < MAX_BURSTS && go();
    }

    void write_channel(const Address& aw, const Data& w, bool b_taken) {
        Vshears& m = *model_;
        if (aw.valid && aw.ready) {
            check_burst("AW", aw);
            ++write_bursts;
            writes_.push_back(make_burst(true, aw, 0));
        }
        if (w.valid && w.ready) {
            ++write_beats;
            early_.push_back(w);
        }
        while (!writes_.empty() && !early_.empty()) {
            Burst& burst = writes_.front();
            const Data& beat = early_.front();
            const uint64_t address = burst.address + uint64_t(burst.done) * BEAT_BYTES;
            const unsigned response = response_at(burst, address);
            if (response > burst.response) burst.response = response;
            if (response == OKAY)
                for (int i = 0; i < BEAT_BYTES; ++i)
                    if (beat.strobe >> i & 1) memory_[address - base_ + i] = beat.data >> 8 * i;
            const bool last = ++burst.done == burst.beats;
            if (beat.last != last)
                violation("W: WLAST is %d on beat %u of %u", beat.last, burst.done, burst.beats);
            early_.pop_front();
            if (last) {
                burst.due = cycle + write_latency_;
                responses_.push_back(burst);
                writes_.pop_front();
            }
        }
        if (b_taken) {
            m.m_axi_bvalid = 0;
            responses_.pop_front();
        }
        if (!m.m_axi_bvalid && !responses_.empty() && go()) {
            const Burst& burst = responses_.front();
            if (cycle + 1 >= burst.due && !hangs(burst)) {
                m.m_axi_bresp = burst.response;
                m.m_axi_bvalid = 1;
            }
        }
        m.m_axi_awready = writes_.size() + responses_.size() < MAX_BURSTS && go();
        m.m_axi_wready = early_.size() < MAX_EARLY_BEATS && go();
    }

    Burst make_burst(bool write, const Address& a, uint64_t due) {
        Burst burst{a.address, a.length + 1, 0, due, OKAY, Fault{}, generation_};
        const uint64_t end = burst.address + uint64_t(burst.beats) * BEAT_BYTES;
        for (Fault& fault : faults_) {
            if (fault.write != write || fault.left == 0) continue;
            if (fault.start >= end || burst.address >= fault.end) continue;
            if (fault.left > 0) --fault.left;
            burst.fault = fault;
            break;
        }
        return burst;
    }

    unsigned response_at(const Burst& burst, uint64_t address) const {
        if (address < base_ || address + BEAT_BYTES > base_ + size_) return DECERR;
        const Fault& fault = burst.fault;
        const bool hit = address + BEAT_BYTES > fault.start && address < fault.end;
        return hit && fault.response != HANG ? fault.response : OKAY;
    }

    bool hangs(const Burst& burst) const {
        return burst.fault.end && burst.fault.response == HANG && burst.generation == generation_;
    }

    void check_burst(const char* channel, const Address& a) {
        if (a.size != 3) violation("%s: size is %u, not 3 (8 bytes)", channel, a.size);
        if (a.burst != 1) violation("%s: burst is %u, not 1 (INCR)", channel, a.burst);
        if (a.id != 0) violation("%s: id is %u, not 0", channel, a.id);
        if (a.address % BEAT_BYTES) violation("%s: address %#x is not aligned", channel, a.address);
        if ((a.address & 4095) + (a.length + 1) * BEAT_BYTES > 4096)
            violation("%s: %u beats at %#x cross 4 KiB", channel, a.length + 1, a.address);
    }

    void check_stable(const char* channel, Address& previous, const Address& now) {
        if (previous.valid && !previous.ready) {
            if (!now.valid) violation("%s: valid fell before ready", channel);
            else if (now.address != previous.address || now.length != previous.length ||
                     now.size != previous.size || now.burst != previous.burst ||
                     now.id != previous.id)
                violation("%s: payload changed before ready", channel);
        }
        previous = now;
    }

    void check_stable_data(const Data& now) {
        const Data& previous = previous_w_;
        if (previous.valid && !previous.ready) {
            if (!now.valid) violation("W: valid fell before ready");
            else if (now.data != previous.data || now.strobe != previous.strobe ||
                     now.last != previous.last)
                violation("W: payload changed before ready");
        }
        previous_w_ = now;
    }

    bool go() {
        if (!stall_percent_) return true;
        random_ ^= random_ << 13;
        random_ ^= random_ >> 7;
        random_ ^= random_ << 17;
        return (random_ >> 11) % 100 >= stall_percent_;
    }

    void violation(const char* format, ...) {
        if (!message_.empty()) return;
        char text[256];
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        message_ = "cycle " + std::to_string(cycle) + ": " + text;
    }

    void dump(bool rising) {
#ifdef SHEARS_TRACE
        if (trace_) trace_->dump(2 * cycle + rising);
#else
        (void)rising;
#endif
    }

    VerilatedContext context_;
    std::unique_ptr<Vshears> model_;
#ifdef SHEARS_TRACE
    std::unique_ptr<VerilatedVcdC> trace_;
#endif
    uint8_t* memory_;
    uint64_t base_, size_;
    unsigned read_latency_, write_latency_, stall_percent_;
    uint64_t random_, generation_ = 0;
    std::vector<Fault> faults_;
    std::deque<Burst> reads_, writes_, responses_;
    std::deque<Data> early_;
    Address previous_ar_, previous_aw_;
    Data previous_w_;
    bool in_reset_ = true;
    bool lite_aw_ = false, lite_w_ = false, lite_b_ = false, lite_ar_ = false, lite_r_ = false;
    uint32_t lite_data_ = 0, lite_response_ = 0;
    std::string message_;
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API Harness* shears_create(uint8_t* memory, uint64_t base, uint64_t size, uint32_t read_latency,
                           uint32_t write_latency, uint32_t stall_percent, uint64_t seed) {
    return new Harness(memory, base, size, read_latency, write_latency, stall_percent, seed);
}
API void shears_destroy(Harness* h) { delete h; }
API int shears_reset(Harness* h) { return h->reset(16); }
API int shears_run(Harness* h, uint64_t cycles, int until_irq) { return h->run(cycles, until_irq); }
API int shears_write(Harness* h, uint32_t address, uint32_t data, uint32_t max_cycles,
                     uint32_t* response) {
    return h->write_register(address, data, max_cycles, response);
}
API int shears_read(Harness* h, uint32_t address, uint32_t max_cycles, uint32_t* data,
                    uint32_t* response) {
    return h->read_register(address, max_cycles, data, response);
}
API void shears_inject(Harness* h, int write, uint32_t response, uint64_t start, uint64_t size,
                       int64_t count) {
    h->inject(write, response, start, size, count);
}
API void shears_clear_faults(Harness* h) { h->clear_faults(); }
API int shears_irq(Harness* h) { return h->irq(); }
API const char* shears_message(Harness* h) { return h->message(); }
API void shears_counts(Harness* h, uint64_t* counts) {
    const uint64_t values[] = {h->cycle, h->read_beats, h->write_beats, h->read_bursts,
                               h->write_bursts};
    std::memcpy(counts, values, sizeof values);
}
API int shears_trace_open(Harness* h, const char* path) { return h->trace_open(path); }
API void shears_trace_close(Harness* h) { h->trace_close(); }
