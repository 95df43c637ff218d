// SPDX-License-Identifier: Apache-2.0
// The simulation room: clock, reset and the two wires of a serial line around the Verilated SoC.
//
// Bytes are put on `serial_in` and taken off `serial_out` bit by bit, 8N1, a bit being `divider`
// cycles long on each side by its own count.

#include <cstdint>
#include <deque>
#include <memory>

#include "Vshears_soc.h"
#include "verilated.h"

namespace {

class Harness {
  public:
    explicit Harness(unsigned divider) : divider_{divider} {
        model_ = std::make_unique<Vshears_soc>(&context_, "shears_soc");
        model_->aclk = 0;
        model_->serial_in = 1;
        reset();
    }

    ~Harness() { model_->final(); }

    void reset() {
        outgoing_.clear();
        incoming_.clear();
        send_left_ = receive_left_ = low_ = 0;
        model_->serial_in = 1;
        model_->aresetn = 0;
        for (int i = 0; i < 16; ++i) tick();
        model_->aresetn = 1;
        tick();
    }

    void send(const uint8_t* data, uint64_t size) {
        outgoing_.insert(outgoing_.end(), data, data + size);
    }

    // Forget what is not on the wire yet, and hold it low for some cycles.
    void hold_low(uint64_t cycles) { low_ = cycles; }

    uint64_t run(uint64_t cycles, uint64_t until) {
        for (uint64_t i = 0; i < cycles && incoming_.size() < until; ++i) tick();
        return incoming_.size();
    }

    // Until all has been sent.
    void drain() {
        while (!outgoing_.empty() || send_left_) tick();
    }

    uint64_t receive(uint8_t* data, uint64_t most) {
        uint64_t count = 0;
        while (count < most && !incoming_.empty()) {
            data[count++] = incoming_.front();
            incoming_.pop_front();
        }
        return count;
    }

    uint64_t waiting() const { return incoming_.size(); }
    unsigned leds() const { return model_->led; }
    uint64_t cycle = 0, bad_stops = 0;

  private:
    void tick() {
        drive();
        model_->aclk = 0;
        model_->eval();
        sample();
        model_->aclk = 1;
        model_->eval();
        ++cycle;
    }

    void drive() {
        if (low_) {
            --low_;
            model_->serial_in = 0;
            return;
        }
        if (!send_left_) {
            model_->serial_in = 1;
            if (outgoing_.empty()) return;
            // Start bit, eight data bits from the lowest, stop bit.
            send_bits_ = unsigned(outgoing_.front()) << 1 | 1u << 9;
            outgoing_.pop_front();
            send_left_ = 10 * divider_;
        }
        model_->serial_in = send_bits_ >> ((10 * divider_ - send_left_) / divider_) & 1;
        --send_left_;
    }

    void sample() {
        const bool pin = model_->serial_out;
        if (!receive_left_) {
            if (pin) return;
            receive_left_ = 10 * divider_;
            received_ = 0;
        }
        const unsigned at = 10 * divider_ - receive_left_;
        if (at % divider_ == divider_ / 2) received_ |= unsigned(pin) << (at / divider_);
        if (--receive_left_ == divider_ / 4) {  // early, so that the next start bit is not missed
            receive_left_ = 0;
            if (!(received_ >> 9 & 1)) ++bad_stops;
            incoming_.push_back(uint8_t(received_ >> 1));
        }
    }

    VerilatedContext context_;
    std::unique_ptr<Vshears_soc> model_;
    unsigned divider_, send_bits_ = 0, send_left_ = 0, received_ = 0, receive_left_ = 0;
    uint64_t low_ = 0;
    std::deque<uint8_t> outgoing_, incoming_;
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API Harness* soc_create(uint32_t divider) { return new Harness(divider); }
API void soc_destroy(Harness* h) { delete h; }
API void soc_reset(Harness* h) { h->reset(); }
API void soc_send(Harness* h, const uint8_t* data, uint64_t size) { h->send(data, size); }
API void soc_hold_low(Harness* h, uint64_t cycles) { h->hold_low(cycles); }
API uint64_t soc_run(Harness* h, uint64_t cycles, uint64_t until) { return h->run(cycles, until); }
API void soc_drain(Harness* h) { h->drain(); }
API uint64_t soc_receive(Harness* h, uint8_t* data, uint64_t most) { return h->receive(data, most); }
API uint64_t soc_waiting(Harness* h) { return h->waiting(); }
API uint32_t soc_leds(Harness* h) { return h->leds(); }
API uint64_t soc_cycles(Harness* h) { return h->cycle; }
API uint64_t soc_bad_stops(Harness* h) { return h->bad_stops; }
